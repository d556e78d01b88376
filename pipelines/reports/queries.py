"""What a gallery shows of one run, or of two side by side: captions, their best videos, strips of frames."""

import io
from collections.abc import Mapping, Sequence
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

Row = dict[str, Any]  # of PREDICTIONS
Predictions = list[Row]


@dataclass(frozen=True)
class PlayableFile:
    """Where a video of the data set is, and the seconds of it that count; None: its start, its end."""

    path: str
    start: float | None = None
    end: float | None = None

    @property
    def address(self) -> str | None:
        """A link that plays it from its moment; None where it is not on this machine's disks."""
        if "://" in self.path:
            return None
        file = Path(self.path)
        if not file.is_file():
            return None

        address = file.absolute().as_uri()
        if self.start is None and self.end is None:
            return address

        # A media fragment: browsers play `#t=4.5,9` from 4.5 s to 9 s.
        start = self.start or 0
        fragment = f"#t={start:g}"
        if self.end is not None:
            fragment += f",{self.end:g}"
        return address + fragment


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
    files: Mapping[str, PlayableFile] | None = None,
) -> GalleryData:
    """Read the predictions of one run or two and the frames of all videos that are shown.

    names, tables: one or two runs and their PREDICTIONS. most: how many captions are kept; where there are
    more, those that only one of two runs finds first come before a random choice of the others. files: where
    the videos are, to play them. Raises ValueError if the runs were not measured on the same captions.
    """
    if files is None:
        files = {}

    runs = [table.to_pylist() for table in tables]
    captions = [_captions(run) for run in runs]
    if any(other != captions[0] for other in captions):
        raise ValueError(f"{' and '.join(names)} were not measured on the same captions; nothing to compare")

    # The same captions of every run, so that results stand side by side.
    row_numbers = chosen(runs, most, seed)
    shown_runs = []
    for run in runs:
        shown_runs.append([run[number] for number in row_numbers])

    # Queries name videos by number: an identifier would stand on the page a dozen times.
    videos = _videos_of(shown_runs)
    number_of = {video: number for number, video in enumerate(videos)}

    queries = []
    for rows in zip(*shown_runs, strict=True):
        queries.append(_query(rows, number_of))

    shown_videos = []
    for video in videos:
        file = files.get(video)
        shown_videos.append(_video(shards, video, file))

    return GalleryData(
        runs=list(names),
        total=len(runs[0]),
        queries=queries,
        videos=shown_videos,
    )


def _captions(run: Predictions) -> list[tuple[str, str]]:
    """Each row's caption and its video."""
    return [(row["caption"], row["video"]) for row in run]


def chosen(
    runs: Sequence[Predictions],
    most: int,
    seed: int,
) -> list[int]:
    """The numbers of the rows that are shown, in their order."""
    num_rows = len(runs[0])
    generator = np.random.default_rng(seed)
    order = generator.permutation(num_rows).tolist()

    def runs_differ(row_number: int) -> bool:
        ranks = [run[row_number]["rank"] for run in runs]
        hits = {rank == 1 for rank in ranks}
        return len(hits) > 1

    # `sorted` is stable: within each half the random order stays.
    differing_first = sorted(order, key=runs_differ, reverse=True)
    return sorted(differing_first[:most])


def _videos_of(shown_runs: Sequence[Predictions]) -> list[str]:
    """The videos of all rows, once each, in the order of first sight."""
    # A dict keeps the order, a set would not: the same runs give the same page.
    videos: dict[str, None] = {}
    for run in shown_runs:
        for row in run:
            videos[row["video"]] = None
            videos.update(dict.fromkeys(row["top"]))
    return list(videos)


def _query(rows: Sequence[Row], number_of: Mapping[str, int]) -> ShownQuery:
    """One caption, from its row in each run."""
    # Three digits tell scores apart, and keep the page small.
    results = []
    for row in rows:
        top = [number_of[video] for video in row["top"]]
        scores = [round(score, 3) for score in row["scores"]]
        results.append(ShownResult(row["rank"], top, scores))

    # Caption and right video are the same in every run.
    first = rows[0]
    return ShownQuery(
        caption=first["caption"],
        right=number_of[first["video"]],
        found=first["found"],
        results=results,
    )


def _video(
    shards: Shards | None,
    video: str,
    file: PlayableFile | None,
) -> ShownVideo:
    play = None
    if file is not None:
        play = file.address

    if shards is None:
        return ShownVideo(video, why="the shards are gone", play=play)
    if video not in shards.videos:
        return ShownVideo(video, why="not in the shards", play=play)

    # A browser will not play what could not be decoded: there is no link then.
    if not shards.num_frames(video):
        error = shards.videos[video].error
        return ShownVideo(video, why=error or "no frame could be decoded")
    return ShownVideo(video, image=strip(shards, video), play=play)


def strip(shards: Shards, video: str) -> str:
    """FRAMES frames of a video side by side, evenly over it, as a JPEG in a data URI."""
    # A video may have fewer frames than the strip.
    num_stored = shards.num_frames(video)
    num_shown = min(FRAMES, num_stored)
    positions = np.linspace(0, num_stored - 1, num_shown).round()
    numbers = np.unique(positions.astype(int))

    frames = shards.frames(video, numbers.tolist())
    side_by_side = np.concatenate(list(frames), axis=1)
    image = Image.fromarray(side_by_side)

    # Never enlarged: the browser does that as well.
    if image.height > HEIGHT:
        width = round(image.width * HEIGHT / image.height)
        image = image.resize((width, HEIGHT))

    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return data_uri(jpeg.getvalue(), "jpeg")
