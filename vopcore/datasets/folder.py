"""`folder`: a user's own videos, described by a captions.jsonl beside them.

    {"video": "clips/a.mp4", "split": "train", "captions": ["a dog runs", "a dog"], "start": 0.0, "end": 7.5}

`video` is relative to the videos' folder; `start` and `end` (seconds) may be left out. A clip with a moment
has the id `clips/a.mp4#0.0-7.5`. The file is the user's own, so a broken line stops with its number.
"""

import json
from pathlib import Path

import pyarrow as pa

from vopcore.datasets.errors import DatasetError, Line
from vopcore.datasets.match import VideoFiles
from vopcore.datasets.table import SPLITS, Reading

KEYS = 'a line is {"video": "clips/a.mp4", "split": "train", "captions": ["..."]}'


def folder(annotations: Path, videos: str | Path) -> pa.Table:
    """ANNOTATIONS from `annotations`/captions.jsonl; raises DatasetError with file:line."""
    path = annotations / "captions.jsonl"
    if not path.is_file():
        raise DatasetError(f"{path} does not exist: {KEYS}")
    reading = Reading(VideoFiles(videos).at)
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                clip = parse(line)
            except ValueError as error:
                raise DatasetError(f"{path}:{number}: {error}") from error
            reading.add(**clip, where=Line(path, number))
    if not reading.clips:
        raise DatasetError(f"{path} holds no usable line: {KEYS}")
    return reading.table("folder")


def parse(line: bytes) -> dict:
    """The arguments of `Reading.add` from one line; raises ValueError saying what is wrong with it."""
    try:
        clip = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON: nested too deeply") from error
    if not isinstance(clip, dict) or not {"video", "split", "captions"} <= clip.keys():
        missing = {"video", "split", "captions"} - set(clip if isinstance(clip, dict) else ())
        raise ValueError(f"{' and '.join(sorted(missing))} missing: {KEYS}")
    video, split, captions = clip["video"], clip["split"], clip["captions"]
    if not isinstance(video, str) or not video.strip():
        raise ValueError(f"video is {video!r}, not a path below the videos' folder")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, not one of {', '.join(SPLITS)}")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"captions is {captions!r:.80}, not a list of texts")
    start, end = moment(clip)
    name = video if start is None and end is None else f"{video}#{seconds(start)}-{seconds(end)}"
    times = {"start": start, "end": end}
    return {"split": split, "video": name, "captions": captions, "names": [video], **times}


def moment(clip: dict) -> tuple[float | None, float | None]:
    """`start` and `end` in seconds; raises ValueError unless 0 <= start < end."""
    start, end = clip.get("start"), clip.get("end")
    for key, value in [("start", start), ("end", end)]:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key} is {value!r}, not seconds")
    if not 0 <= (start or 0) < (float("inf") if end is None else end):
        raise ValueError(f"start {start} and end {end} are no moment: 0 <= start < end, in seconds")
    return (None if start is None else float(start)), (None if end is None else float(end))


def seconds(value: float | None) -> str:
    return "" if value is None else str(value)
