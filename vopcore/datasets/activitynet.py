"""ActivityNet Captions (Krishna et al., ICCV 2017), paragraph-video retrieval: train and val1 (called test
here).

Files: train.json and val_1.json ({id: {duration, timestamps, sentences}}), and which ids of them: CLIP4Clip's
train_ids.json and val_ids.json, Collaborative Experts' train_list.txt and val_1_list.txt, or all.
Videos: v_<id>.mp4 as published or <id>.mp4 as CLIP4Clip wants, any suffix. A video's sentences are one
caption, joined by a space; the video is cut to its first ceil(duration) seconds, both as CLIP4Clip does.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from vopcore.datasets.errors import Line
from vopcore.datasets.files import AnnotationFiles, read_ids, read_json
from vopcore.datasets.match import VideoFiles, VideosFolder
from vopcore.datasets.table import Reading, Sentence

# (videos, paragraphs), counted on train.json and val_1.json; papers say 10,009 and 4,917
PUBLISHED = {"train": (10_009, 10_009), "test": (4917, 4917)}

LAYOUTS = {
    "CLIP4Clip": ["train.json", "val_1.json", "train_ids.json", "val_ids.json"],
    "Collaborative Experts": [
        "train.json",
        "val_1.json",
        "train_list.txt",
        "val_1_list.txt",
    ],
    "official": ["train.json", "val_1.json"],
}


def activitynet(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """One paragraph per video, videos in the order of the ids' list."""
    files = AnnotationFiles(annotations)
    reading = Reading(VideoFiles(videos))
    layout, paths = files.choose("ActivityNet Captions", LAYOUTS)

    # the two json files come first in every layout, the two lists of ids after them
    train_json, test_json, *lists = paths
    train_list, test_list = lists or (None, None)
    read_split("train", train_json, train_list, reading)
    read_split("test", test_json, test_list, reading)

    file_names = ", ".join(path.name for path in paths)
    return reading.table(f"{layout} ({file_names})")


def read_split(
    split: str,
    json_path: Path,
    list_path: Path | None,
    reading: Reading,
) -> None:
    """Adds the paragraphs of a split: of the ids in a list, or of all."""
    entries = {}
    for video, entry in read_json(json_path, reading, dict).items():
        entries[bare(video)] = entry

    ids = dict.fromkeys(entries, Line(json_path))
    if list_path is not None:
        ids = read_ids(list_path, reading)

    for video, where in ids.items():
        name = bare(video)
        paragraph = read_paragraph(entries.get(name), json_path, reading)
        start = None
        end = None
        if paragraph.duration:
            start = 0.0
            end = float(math.ceil(paragraph.duration))
        reading.add(
            split,
            f"v_{name}",
            paragraph.captions,
            where,
            names=[f"v_{name}", name],
            start=start,
            end=end,
            sentences=paragraph.sentences,
        )


@dataclass(frozen=True)
class Paragraph:
    """captions: all sentences as one, or none. duration: in seconds, where it is known. sentences: with their
    times, or none where any time is missing."""

    captions: list[str]
    duration: float | None
    sentences: list[Sentence]


def bare(video: str) -> str:
    """The YouTube id: some lists have `v_` before it, some not."""
    return video.removeprefix("v_")


def read_paragraph(
    entry: object,
    source: Path,
    reading: Reading,
) -> Paragraph:
    """What an entry of the json says; nothing of an entry that is none."""
    if entry is None:
        return Paragraph([], None, [])
    content = entry if isinstance(entry, dict) else {}
    texts = content.get("sentences")
    has_texts = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    if texts is None or not has_texts:
        reading.problem(Line(source), f"an entry has no sentences: {entry!r:.80}")
        return Paragraph([], None, [])

    duration = content.get("duration")
    is_known = isinstance(duration, int | float) and 0 < duration < math.inf
    return Paragraph(
        captions=[" ".join(texts)],
        duration=duration if is_known else None,
        sentences=timed(texts, content.get("timestamps")),
    )


def timed(texts: list[str], timestamps: object) -> list[Sentence]:
    """Sentences with their [start, end]; times the wrong way round are turned, as two of train.json are.

    [] unless each sentence has a pair of seconds.
    """
    if not isinstance(timestamps, list) or len(timestamps) != len(texts):
        return []

    sentences = []
    for text, times in zip(texts, timestamps, strict=True):
        is_pair = isinstance(times, list) and len(times) == 2
        if not is_pair or not all(isinstance(time, int | float) for time in times):
            return []
        start = float(min(times))
        end = float(max(times))
        sentences.append(Sentence(text.strip(), start, end))
    return sentences
