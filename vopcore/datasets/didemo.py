"""DiDeMo (Hendricks et al., ICCV 2017), paragraph-video retrieval: all descriptions of a video as one
caption.

Files: {train,val,test}_data.json of LocalizingMoments, {train,val,test}_list.txt of Collaborative Experts,
which define the retrieval split (1,004 test videos of the json's 1,037), and yfcc100m_hash.txt for hashed
file names. Videos, cut to [0, 31] s as CLIP4Clip does (30 s were annotated), go by: the id itself, whatever
its suffix (193 end in a dot), the id plus a suffix, the id with another suffix, the Flickr id in it, the
YFCC100M hash.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from vopcore.datasets.errors import DatasetError, Line
from vopcore.datasets.files import AnnotationFiles, entries, read_ids, read_json, read_lines
from vopcore.datasets.match import VideoFiles, VideosFolder
from vopcore.datasets.table import SPLITS, Reading, Sentence

# (videos, paragraphs): the lists of Collaborative Experts; CLIP4Clip finds 1,003 test videos, others 979
PUBLISHED = {"train": (8392, 8392), "val": (1065, 1065), "test": (1004, 1004)}

END = 31.0  # seconds
PIECE = 5.0  # seconds; moments are marked as the first and the last of six pieces
ID = re.compile(r"\d+@N\d+_(\d+)_")  # <owner>_<flickr id>_<secret>


def didemo(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """One paragraph per video, in list order; a split whose json is missing is noted."""
    files, reading = AnnotationFiles(annotations), Reading(VideoFiles(videos, aliases=flickr_id))
    hashes = read_hashes(files.find("yfcc100m_hash.txt"), reading)
    took = []
    for split in SPLITS:
        source, listed = files.find(f"{split}_data.json"), files.find(f"{split}_list.txt")
        if source is None:
            reading.absent(files.root / f"{split}_data.json", split)
            continue
        took.append(source.name)
        paragraphs = read_paragraphs(source, reading)
        if listed is None:
            ids = dict.fromkeys(paragraphs, Line(source))
            reading.problem(Line(files.root / f"{split}_list.txt"), f"not there: all {len(ids)} videos taken")
        else:
            ids = read_ids(listed, reading)
        for video, where in ids.items():
            descriptions = paragraphs.get(video, [])
            captions = [" ".join(one.text for one in descriptions)] if descriptions else []
            reading.add(
                split,
                video,
                captions,
                where,
                names=file_names(video, hashes),
                start=0.0,
                end=END,
                sentences=sentences_of(descriptions),
            )
    if not took:
        looked = ", ".join(f"{split}_data.json" for split in SPLITS)
        raise DatasetError(f"{annotations} holds no DiDeMo: looked for {looked}")
    return reading.table(f"LocalizingMoments ({', '.join(took)})")


@dataclass(frozen=True)
class Description:
    """What one person wrote, and the moments that people marked for it, in pieces of PIECE seconds."""

    text: str
    times: object


def read_paragraphs(path: Path, reading: Reading) -> dict[str, list[Description]]:
    """Descriptions by video, in the file's order."""
    paragraphs = defaultdict(list)
    items = read_json(path, reading, list)
    entries(items, {"video": str, "description": str}, path, reading)  # records what is left out
    for item in items:
        if isinstance(item, dict):
            video = item.get("video")
            text = item.get("description")
            if isinstance(video, str) and isinstance(text, str):
                paragraphs[video].append(Description(text, item.get("times")))
    return paragraphs


def sentences_of(descriptions: Iterable[Description]) -> list[Sentence]:
    """Each description with the moment that most people marked; of equally many, the first of the file.

    [] unless each has a moment.
    """
    sentences = []
    for description in descriptions:
        marked = []
        for pair in description.times if isinstance(description.times, list) else []:
            if isinstance(pair, list) and len(pair) == 2 and all(isinstance(piece, int) for piece in pair):
                marked.append((min(pair), max(pair)))
        if not marked:
            return []
        first, last = Counter(marked).most_common(1)[0][0]
        sentences.append(Sentence(description.text.strip(), first * PIECE, (last + 1) * PIECE))
    return sentences


def read_hashes(path: Path | None, reading: Reading) -> dict[str, str]:
    """`<flickr id>` to `<hash>`, tab separated; {} without the file."""
    if path is None:
        return {}
    rows = [line.split() for _, line in read_lines(path, reading)]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def flickr_id(name: str) -> Iterable[str]:
    return ID.findall(name)[:1]


def file_names(video: str, hashes: dict[str, str]) -> list[str]:
    """What the file of a video may be called, best first."""
    names = [video, video.rpartition(".")[0] or video]
    for flickr in flickr_id(video):
        names += [flickr, hashes.get(flickr, flickr)]
    return list(dict.fromkeys(names))
