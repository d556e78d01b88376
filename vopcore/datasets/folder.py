"""`folder`: a user's own videos, described by a captions.jsonl beside them.

    {"video": "clips/a.mp4", "split": "train", "captions": ["a dog runs", "a dog"], "start": 0.0, "end": 7.5}

`video` is relative to the videos' folder; `start` and `end` (seconds) may be left out. A moment has the id
`clips/a.mp4#0.0-7.5`. The file is the user's own, so a broken line stops with its number.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from vopcore.datasets.errors import DatasetError, Line
from vopcore.datasets.match import VideoFiles, VideosFolder
from vopcore.datasets.table import SPLITS, Reading

KEYS = 'a line is {"video": "clips/a.mp4", "split": "train", "captions": ["..."]}'
NEEDED = frozenset({"video", "split", "captions"})
KNOWN = NEEDED | {"start", "end"}


class CaptionLine(NamedTuple):
    """One line of captions.jsonl."""

    path: str
    split: str
    captions: list[str]
    start: float | None
    end: float | None

    @property
    def video(self) -> str:
        """The id: the path, and for a moment its seconds."""
        if self.start is None and self.end is None:
            return self.path
        return f"{self.path}#{seconds(self.start)}-{seconds(self.end)}"


def folder(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """ANNOTATIONS from `annotations`/captions.jsonl; raises DatasetError with file:line."""
    path = annotations / "captions.jsonl"
    if not path.is_file():
        raise DatasetError(f"{path} does not exist: {KEYS}")

    reading = Reading(VideoFiles(videos), by_path=True)
    unknown_keys: Counter[str] = Counter()
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            # editors of Windows begin a file with a byte order mark
            text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if text.isspace():
                continue

            try:
                entry = parse(text.strip(b"\r\n"))
                line = caption_line(entry)
            except ValueError as error:
                raise DatasetError(f"{path}:{number}: {error}") from error

            # a misspelt `start` would go unnoticed, and the whole video be taken
            if not entry.keys() <= KNOWN:
                unknown_keys.update(entry.keys() - KNOWN)
            reading.add(
                line.split,
                line.video,
                line.captions,
                Line(path, number),
                names=(line.path,),
                start=line.start,
                end=line.end,
            )

    if reading.is_empty:
        raise DatasetError(f"{path} holds no usable line: {KEYS}")
    known = ", ".join(sorted(KNOWN))
    for key, count in unknown_keys.items():
        reading.problem(
            Line(path),
            f"key {key!r} of {count:,} lines is not read; known: {known}",
        )
    return reading.table("folder")


def parse(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; raises ValueError saying what is wrong with it."""
    try:
        entry = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON: nested too deeply") from error

    present = entry.keys() if isinstance(entry, dict) else set()
    missing = NEEDED - present
    if missing:
        raise ValueError(f"{' and '.join(sorted(missing))} missing: {KEYS}")
    return entry


def caption_line(entry: dict[str, Any]) -> CaptionLine:
    """The values of a line, each checked; raises ValueError naming the one that is wrong."""
    video = entry["video"]
    if not isinstance(video, str) or not video.strip():
        raise ValueError(f"video is {video!r}, not a path below the videos' folder")

    split = entry["split"]
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, not one of {', '.join(SPLITS)}")

    captions = entry["captions"]
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"captions is {captions!r:.80}, not a list of texts")

    start = moment_end(entry, "start")
    end = moment_end(entry, "end")
    first_second = 0.0 if start is None else start
    last_second = math.inf if end is None else end
    if not 0 <= first_second < last_second:
        times = f"start {entry.get('start')} and end {entry.get('end')}"
        raise ValueError(f"{times} are no moment: 0 <= start < end, in seconds")
    return CaptionLine(
        video,
        split,
        captions,
        start,
        end,
    )


def moment_end(entry: dict[str, Any], key: str) -> float | None:
    """`start` or `end` in seconds, None where it is left out; raises ValueError for what is no time."""
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is {value!r:.40}, not seconds")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{key} has {len(str(value))} digits: no time in seconds") from None


def seconds(value: float | None) -> str:
    """A time as it stands in the id of a moment; "" for the beginning or the end of the video."""
    return "" if value is None else str(value)
