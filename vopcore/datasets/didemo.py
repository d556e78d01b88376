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
from vopcore.datasets.files import (
    AnnotationFiles,
    entries,
    has_all,
    read_ids,
    read_json,
    read_lines,
)
from vopcore.datasets.match import VideoFiles, VideosFolder
from vopcore.datasets.table import SPLITS, Reading, Sentence

# (videos, paragraphs): the lists of Collaborative Experts; CLIP4Clip finds 1,003 test videos, others 979
PUBLISHED = {
    "train": (8392, 8392),
    "val": (1065, 1065),
    "test": (1004, 1004),
}

END = 31.0  # seconds
PIECE = 5.0  # seconds; moments are marked as the first and the last of six pieces
ID = re.compile(r"\d+@N\d+_(\d+)_")  # <owner>_<flickr id>_<secret>


def didemo(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """One paragraph per video, in list order; a split whose json is missing is noted."""
    files = AnnotationFiles(annotations)
    reading = Reading(VideoFiles(videos, aliases=flickr_id))
    hashes = read_hashes(files.find("yfcc100m_hash.txt"), reading)
    json_names = []
    for split in SPLITS:
        json_name = f"{split}_data.json"
        json_path = files.find(json_name)
        if json_path is None:
            reading.absent(files.root / json_name, split)
            continue
        json_names.append(json_name)
        read_split(
            split,
            json_path,
            files,
            hashes,
            reading,
        )

    if not json_names:
        looked_for = ", ".join(f"{split}_data.json" for split in SPLITS)
        raise DatasetError(f"{annotations} holds no DiDeMo: looked for {looked_for}")
    return reading.table(f"LocalizingMoments ({', '.join(json_names)})")


def read_split(
    split: str,
    json_path: Path,
    files: AnnotationFiles,
    hashes: dict[str, str],
    reading: Reading,
) -> None:
    """Adds the paragraphs of a split: of the ids in its list, or of all where there is no list."""
    paragraphs = read_paragraphs(json_path, reading)
    list_name = f"{split}_list.txt"
    list_path = files.find(list_name)
    if list_path is None:
        ids = dict.fromkeys(paragraphs, Line(json_path))
        reading.problem(
            Line(files.root / list_name),
            f"not there: all {len(ids)} videos taken",
        )
    else:
        ids = read_ids(list_path, reading)

    for video, where in ids.items():
        descriptions = paragraphs.get(video, [])
        captions = []
        if descriptions:
            captions = [" ".join(description.text for description in descriptions)]
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


@dataclass(frozen=True)
class Description:
    """What one person wrote, and the moments that people marked for it, in pieces of PIECE seconds."""

    text: str
    times: object


def read_paragraphs(path: Path, reading: Reading) -> dict[str, list[Description]]:
    """Descriptions by video, in the file's order."""
    keys = {"video": str, "description": str}
    items = read_json(path, reading, list)

    # records what is left out, and refuses a file of nothing else; `times` may be missing
    entries(items, keys, path, reading)
    paragraphs = defaultdict(list)
    for item in items:
        if has_all(item, keys):
            description = Description(item["description"], item.get("times"))
            paragraphs[item["video"]].append(description)
    return paragraphs


def sentences_of(descriptions: Iterable[Description]) -> list[Sentence]:
    """Each description with the moment that most people marked; of equally many, the first of the file.

    [] unless each has a moment.
    """
    sentences = []
    for description in descriptions:
        pairs = marked_pieces(description.times)
        if not pairs:
            return []

        # of equal counts, most_common gives the one that was seen first
        [(pair, _)] = Counter(pairs).most_common(1)
        first, last = pair
        start = first * PIECE
        end = (last + 1) * PIECE
        sentences.append(Sentence(description.text.strip(), start, end))
    return sentences


def marked_pieces(times: object) -> list[tuple[int, int]]:
    """The first and last piece of each moment that was marked; what is no pair of numbers is left out."""
    if not isinstance(times, list):
        return []

    pairs = []
    for pair in times:
        is_pair = isinstance(pair, list) and len(pair) == 2
        if is_pair and all(isinstance(piece, int) for piece in pair):
            pairs.append((min(pair), max(pair)))
    return pairs


def read_hashes(path: Path | None, reading: Reading) -> dict[str, str]:
    """`<flickr id>` to `<hash>`, tab separated; {} without the file."""
    if path is None:
        return {}

    hashes = {}
    for _, line in read_lines(path, reading):
        fields = line.split()
        if len(fields) == 2:
            flickr, file_hash = fields
            hashes[flickr] = file_hash
    return hashes


def flickr_id(name: str) -> Iterable[str]:
    """The Flickr id in a file's name, or nothing."""
    return ID.findall(name)[:1]


def file_names(video: str, hashes: dict[str, str]) -> list[str]:
    """What the file of a video may be called, best first."""
    names = [video]
    stem = video.rpartition(".")[0]
    if stem:
        names.append(stem)
    for flickr in flickr_id(video):
        names.append(flickr)
        if flickr in hashes:
            names.append(hashes[flickr])
    return names
