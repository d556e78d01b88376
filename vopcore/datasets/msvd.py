"""MSVD / YouTubeClips (Chen & Dolan, ACL 2011): 1,970 short clips with about 41 captions each.

Files: train_list.txt, val_list.txt, test_list.txt with CLIP4Clip's raw-captions.pkl ({id: [[token, ...],
...]}) or X-Pool's captions_msvd.json ({id: [sentence, ...]}); youtube_mapping.txt where files are called
vid<k>.avi. Videos: <id>.avi of YouTubeClips.tar, the id being <youtube id>_<start>_<end>.
"""

from pathlib import Path

import pyarrow as pa

from vopcore.datasets.errors import DatasetError
from vopcore.datasets.files import (
    AnnotationFiles,
    lists_by_video,
    read_ids,
    read_json,
    read_lines,
    read_pickle,
)
from vopcore.datasets.match import VideoFiles, VideosFolder
from vopcore.datasets.table import SPLITS, Reading

# (videos, captions), counted on captions_msvd.json and the lists; CLIP4Clip's last cut-off point is 27,763
PUBLISHED = {
    "train": (1200, 48_774),
    "val": (100, 4290),
    "test": (670, 27_763),
}

LISTS = [f"{split}_list.txt" for split in SPLITS]
LAYOUTS = {
    "CLIP4Clip": ["raw-captions.pkl", *LISTS],
    "X-Pool": ["captions_msvd.json", *LISTS],
}


def msvd(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """All captions of all clips, videos in list order."""
    files = AnnotationFiles(annotations)
    reading = Reading(VideoFiles(videos))
    layout, (path, *lists) = files.choose("MSVD", LAYOUTS)
    if layout == "CLIP4Clip":
        captions = read_tokens(path, reading)
    else:
        captions = lists_by_video(read_json(path, reading, dict), path, reading)

    mapping = files.find("youtube_mapping.txt")
    other_names = read_mapping(mapping, reading) if mapping else {}

    for split, ids in zip(SPLITS, lists, strict=True):
        for video, where in read_ids(ids, reading).items():
            names = [video]
            if video in other_names:
                names.append(other_names[video])
            reading.add(
                split,
                video,
                captions.get(video, ()),
                where,
                names=names,
                source=cut_from(video),
            )
    return reading.table(f"{layout} ({path.name})")


def read_tokens(path: Path, reading: Reading) -> dict[str, list[str]]:
    """Captions of CLIP4Clip's pickle, whose tokens are joined by a space as CLIP4Clip does."""
    captions = read_pickle(path)
    if not isinstance(captions, dict):
        raise DatasetError(f"{path}: holds a {type(captions).__name__}, not a dict of captions by video")

    sentences = {}
    for video, token_lists in lists_by_video(captions, path, reading).items():
        sentences[video] = [sentence(tokens) for tokens in token_lists]
    return sentences


def sentence(tokens: object) -> str:
    """Tokens joined; "" for what is none, which is then recorded as an empty caption."""
    if isinstance(tokens, str):
        return tokens
    if isinstance(tokens, list | tuple):
        return " ".join(str(token) for token in tokens)
    return ""


def read_mapping(path: Path, reading: Reading) -> dict[str, str]:
    """`<id> vid<k>` a line: ids to the other name of their file."""
    names = {}
    for where, line in read_lines(path, reading):
        fields = line.split()
        if len(fields) != 2:
            reading.problem(where, f"{len(fields)} fields, not `<id> vid<k>`; left out")
            continue
        video, name = fields
        names[video] = name
    return names


def cut_from(video: str) -> str:
    """The YouTube id of `<youtube id>_<start>_<end>`; it may hold `_` itself."""
    return video.rsplit("_", 2)[0]
