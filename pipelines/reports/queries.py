"""What a gallery shows of one run, or of two side by side: captions, their best videos, strips of frames."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.reports.page import data_uri
from vopcore.shards import Shards

FRAMES = 4  # of a strip
HEIGHT = 96  # pixels

Predictions = list[dict[str, Any]]  # rows of PREDICTIONS


@dataclass(frozen=True)
class VideoFile:
    """Where a video of the data set is, and the seconds of it that count; None: its start, its end."""

    path: str
    start: float | None = None
    end: float | None = None

    @property
    def address(self) -> str | None:
        """A link that plays it from its moment; None where it is not on this machine's disks."""
        if "://" in self.path or not Path(self.path).is_file():
            return None
        address = Path(self.path).absolute().as_uri()
        if self.start is None and self.end is None:
            return address
        end = "" if self.end is None else f",{self.end:g}"
        return f"{address}#t={self.start or 0:g}{end}"


@dataclass(frozen=True)
class ShownVideo:
    """`image`: frames side by side, evenly over the video, or `why` there is none. `play`: its address."""

    id: str
    image: str | None = None
    why: str | None = None
    play: str | None = None


@dataclass(frozen=True)
class ShownResult:
    """What one run answers to a caption: the rank of the right video, and the best videos by number."""

    rank: float
    top: list[int]
    scores: list[float]


@dataclass(frozen=True)
class ShownQuery:
    """One caption. `right`: the number of its video; `found`: whether that could be decoded."""

    caption: str
    right: int
    found: bool
    results: list[ShownResult]


@dataclass(frozen=True)
class GalleryData:
    """Everything the page shows. `total`: captions of the split, of which `queries` may be a part."""

    runs: list[str]
    total: int
    queries: list[ShownQuery]
    videos: list[ShownVideo]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def gallery_data(
    names: Sequence[str],
    tables: Sequence[pa.Table],
    shards: Shards | None,
    most: int,
    seed: int = 0,
    files: Mapping[str, VideoFile] | None = None,
) -> GalleryData:
    """Read the predictions of one run or two and the frames of all videos that are shown.

    names, tables: one or two runs and their PREDICTIONS. most: how many captions are kept; where there are
    more, those that only one of two runs finds first come before a random choice of the others. files: where
    the videos are, to play them. Raises ValueError if the runs were not measured on the same captions.
    """
    runs = [table.to_pylist() for table in tables]
    pairs = [[(row["caption"], row["video"]) for row in run] for run in runs]
    if any(other != pairs[0] for other in pairs):
        raise ValueError(f"{' and '.join(names)} were not measured on the same captions; nothing to compare")

    chosen_rows = chosen(runs, most, seed)
    shown = [[run[row] for row in chosen_rows] for run in runs]
    videos = _videos_of(shown)
    numbers = {video: number for number, video in enumerate(videos)}
    files = files or {}
    return GalleryData(
        runs=list(names),
        total=len(pairs[0]),
        queries=[_query(rows, numbers) for rows in zip(*shown, strict=True)],
        videos=[_video(shards, video, files.get(video)) for video in videos],
    )


def chosen(runs: Sequence[Predictions], most: int, seed: int) -> list[int]:
    """The captions that are kept, in their order."""
    order = np.random.default_rng(seed).permutation(len(runs[0])).tolist()

    def runs_differ(row: int) -> bool:
        return len({run[row]["rank"] == 1 for run in runs}) > 1

    differing_first = sorted(order, key=runs_differ, reverse=True)
    return sorted(differing_first[:most])


def _videos_of(shown: Sequence[Predictions]) -> list[str]:
    """The videos of all rows, once each."""
    videos: dict[str, None] = {}
    for run in shown:
        for row in run:
            videos[row["video"]] = None
            videos.update(dict.fromkeys(row["top"]))
    return list(videos)


def _query(rows: Iterable[dict[str, Any]], numbers: Mapping[str, int]) -> ShownQuery:
    """One caption, from its row in each run."""
    rows = list(rows)
    results = []
    for row in rows:
        top = [numbers[video] for video in row["top"]]
        scores = [round(score, 3) for score in row["scores"]]
        results.append(ShownResult(row["rank"], top, scores))
    return ShownQuery(rows[0]["caption"], numbers[rows[0]["video"]], rows[0]["found"], results)


def _video(shards: Shards | None, video: str, file: VideoFile | None) -> ShownVideo:
    play = file.address if file else None
    if shards is None:
        return ShownVideo(video, why="the shards are gone", play=play)
    if video not in shards.videos:
        return ShownVideo(video, why="not in the shards", play=play)
    if not shards.num_frames(video):
        return ShownVideo(video, why=shards.videos[video].error or "no frame could be decoded")
    return ShownVideo(video, image=strip(shards, video), play=play)


def strip(shards: Shards, video: str) -> str:
    """FRAMES frames of a video side by side, evenly over it, as a JPEG in a data URI."""
    count = shards.num_frames(video)
    places = np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int)
    frames = shards.frames(video, np.unique(places).tolist())

    image = Image.fromarray(np.concatenate(list(frames), axis=1))
    if image.height > HEIGHT:
        image = image.resize((round(image.width * HEIGHT / image.height), HEIGHT))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return data_uri(jpeg.getvalue(), "jpeg")
