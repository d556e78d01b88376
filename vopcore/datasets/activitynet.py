"""ActivityNet Captions (Krishna et al., ICCV 2017), paragraph-video retrieval: train and val1 (called test
here).

Files: train.json and val_1.json ({id: {duration, timestamps, sentences}}), and which ids of them: CLIP4Clip's
train_ids.json and val_ids.json, Collaborative Experts' train_list.txt and val_1_list.txt, or all.
Videos: v_<id>.mp4 as published or <id>.mp4 as CLIP4Clip wants, any suffix. A video's sentences are one
caption, joined by a space; the video is cut to its first ceil(duration) seconds, both as CLIP4Clip does.
"""

import math
from pathlib import Path

import pyarrow as pa

from vopcore.datasets.errors import Line
from vopcore.datasets.files import AnnotationFiles, read_ids, read_json
from vopcore.datasets.match import VideoFiles
from vopcore.datasets.table import Reading

# (videos, paragraphs), counted on train.json and val_1.json; papers say 10,009 and 4,917
PUBLISHED = {"train": (10_009, 10_009), "test": (4917, 4917)}

LAYOUTS = {
    "CLIP4Clip": ["train.json", "val_1.json", "train_ids.json", "val_ids.json"],
    "Collaborative Experts": ["train.json", "val_1.json", "train_list.txt", "val_1_list.txt"],
    "official": ["train.json", "val_1.json"],
}


def activitynet(annotations: Path, videos: str | Path) -> pa.Table:
    """One paragraph per video, videos in the order of the ids' list."""
    files, reading = AnnotationFiles(annotations), Reading(VideoFiles(videos).find)
    layout, paths = files.choose("ActivityNet Captions", LAYOUTS)
    for number, split in enumerate(["train", "test"]):
        source = paths[number]
        content = {bare(video): entry for video, entry in read_json(source, reading, dict).items()}
        ids = read_ids(paths[number + 2], reading) if len(paths) > 2 else dict.fromkeys(content, Line(source))
        for video, where in ids.items():
            name = bare(video)
            captions, duration = paragraph(content.get(name), source, reading)
            times = {"start": 0.0, "end": float(math.ceil(duration))} if duration else {}
            reading.add(split, f"v_{name}", captions, where, names=[f"v_{name}", name], **times)
    return reading.table(f"{layout} ({', '.join(path.name for path in paths)})")


def bare(video: str) -> str:
    return video.removeprefix("v_")


def paragraph(entry: object, source: Path, reading: Reading) -> tuple[list[str], float | None]:
    """([all sentences as one caption], duration in seconds); ([], None) for an entry that is none."""
    if entry is None:
        return [], None
    sentences = entry.get("sentences") if isinstance(entry, dict) else None
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        reading.problem(Line(source), f"an entry has no sentences: {entry!r:.80}")
        return [], None
    duration = entry.get("duration")
    is_known = isinstance(duration, int | float) and 0 < duration < math.inf
    return [" ".join(sentences)], duration if is_known else None
