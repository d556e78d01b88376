"""The rows of an index, and the exact engine: every vector is compared, in files that are only mapped.

An update is a segment: three Arrow files that appear one after the other, the list of videos last.

    000001.moments.arrow   a row per window: video, start, end, unit vector (fp16), frames, thumbnail
    000001.frames.arrow    a row per encoded frame: time, features (fp16, not normalised)
    000001.videos.arrow    a row per video; with it the segment is there

A video belongs to the last segment that lists it, so renewing one is writing it again, and dropping one is
listing it as gone. Nothing is changed in place: whoever reads goes on with the files it has mapped.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vopcore.index.header import BadIndexError
from vopcore.index.moments import Span
from vopcore.storage import ShardCache, Store, file_sha256

# Mapped files are read-only, and nothing here writes to them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

GONE = "gone"  # status of a video that is no longer there
FAILED = "failed"
CHUNK = 2**15  # vectors compared at once: 64 MiB in fp32 at 512 dimensions
EXPORTED = 10_000  # windows handed out at once
RACES = 3  # times that a reader looks again when a writer has moved files under it
MANY_SEGMENTS = 8  # more are written together as one
VIDEOS, MOMENTS, FRAMES = "videos", "moments", "frames"

VIDEOS_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("size", pa.int64()),
        ("mtime", pa.float64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("duration", pa.float64()),
        ("num_moments", pa.int64()),
        ("num_frames", pa.int64()),
        ("mean", pa.list_(pa.float16())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class IndexedVideo:
    """One video file of an index. `video`: its path below the root, with `/`. `size` in bytes, `mtime` in
    seconds since 1970, `duration` in seconds.

    `status`: "ok", "damaged" (`error` says how, what could be decoded is indexed), "failed" (`error` says
    why, no moments) or "gone".
    """

    video: str
    size: int
    mtime: float
    status: str = "ok"
    error: str | None = None
    duration: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MomentRows:
    """All windows of one video, in order of time: W windows over U encoded frames.

    best: float32 [W], the time of the frame nearest to the window's vector; thumbnails: that frame, JPEG.
    vectors: float16 [W, D], unit. features: float16 [U, D], not normalised; times: float32 [U], seconds.
    frames: for each window the rows of `features` that it was made of.
    """

    spans: Sequence[Span]
    best: np.ndarray
    vectors: np.ndarray
    features: np.ndarray
    times: np.ndarray
    frames: Sequence[Sequence[int]]
    thumbnails: Sequence[bytes]

    def mean(self) -> np.ndarray:
        """float16 [D]: the mean of the unit frame features; its product with a text is the mean cosine."""
        features = torch.from_numpy(self.features).float()
        unit = torch.nn.functional.normalize(features, dim=-1)
        return unit.mean(dim=0).half().numpy()


VideoRows = tuple[IndexedVideo, MomentRows | None]


class Candidates(NamedTuple):
    """Windows near a query. rows: int64 [K], the engine's numbers; videos: int64 [K], places in `videos`;
    starts, ends: float32 [K], seconds; vectors: float16 [K, D]."""

    rows: np.ndarray
    videos: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    vectors: Tensor


class FrameFeatures(NamedTuple):
    """Encoded frames in order of time. times: float32 [F], seconds; features: float32 [F, D]."""

    times: np.ndarray
    features: Tensor


class MomentTable(Protocol):
    """What an engine does. `videos` are those that have moments; `numbers` gives a video's place in it by
    name. `means`: float32 [V, D], the mean unit frame feature of each."""

    videos: list[IndexedVideo]
    numbers: dict[str, int]
    failed: list[IndexedVideo]
    means: Tensor

    @property
    def num_moments(self) -> int:
        """Windows of all videos."""

    def refresh(self) -> bool:
        """Look whether somebody has changed the index; True if so."""

    def add(self, rows: Iterable[VideoRows]) -> None:
        """Write the windows of these videos, in the place of those that were there. All or none."""

    def drop(self, videos: Iterable[str]) -> None:
        """Leave these videos out from now on."""

    def tidy(self) -> None:
        """What is worth doing once after many changes."""

    def nearest(self, query: Tensor, count: int, is_picked: np.ndarray | None) -> Candidates:
        """query: unit float32 [D]. The `count` windows with the largest products, of the picked videos
        (bool [V]; None: all), best first."""

    def window_frames(self, row: int) -> Tensor:
        """The features a window was made of, float32 [F, D]."""

    def frames_between(self, video: int, start: float, end: float) -> FrameFeatures:
        """The encoded frames of a video from `start` to `end`."""

    def window_at(self, video: int, start: float) -> int:
        """The row of the window of a video that begins at `start` or last before it."""

    def picture_at(self, video: int, time: float) -> int:
        """The row of the window of a video whose thumbnail shows what is nearest to `time`."""

    def vector(self, row: int) -> Tensor:
        """float32 [D], the unit vector of a window."""

    def thumbnail(self, row: int) -> bytes:
        """A JPEG."""

    def moments(self) -> Iterator[pa.Table]:
        """Every window, as `moments_schema` without `frames`, some thousands at a time."""


class Segment:
    """One update, mapped. `owned`: for each of its videos whether it is the last segment that lists it."""

    def __init__(self, number: int, videos: pa.Table, moments: pa.Table, frames: pa.Table) -> None:
        self.number = number
        self.moments = moments
        self.frames = frames
        self.entries = [IndexedVideo(**row) for row in videos.select(_ENTRY_COLUMNS).to_pylist()]
        self.means = videos["mean"]

        # Rows of a video stand together, in the order of the list of videos.
        self.first_moment = _offsets(videos["num_moments"])
        self.first_frame = _offsets(videos["num_frames"])
        self.vectors = _matrix(moments, "vector")
        self.features = _matrix(frames, "features")
        self.starts = _numbers(moments, "start")
        self.ends = _numbers(moments, "end")
        self.best = _numbers(moments, "best")
        self.times = _numbers(frames, "time")
        self.local_video = np.repeat(np.arange(len(self.entries)), np.diff(self.first_moment))


_ENTRY_COLUMNS = ["video", "size", "mtime", "status", "error", "duration"]


class ArrowMoments:
    """The exact engine over the segments of a folder or bucket."""

    def __init__(self, store: Store, dimension: int, cache: ShardCache | None = None) -> None:
        """cache: where segments of a bucket are kept on this machine."""
        self._store = store
        self._dimension = dimension
        self._cache = cache or ShardCache()
        self._held: list[BinaryIO] = []
        self._names: list[str] | None = None
        self._segments: dict[int, Segment] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Raises BadIndexError naming the file that cannot be read."""
        for attempts_left in reversed(range(RACES)):
            names = self._store.names()
            listed = [name for name in names if name.endswith(f".{VIDEOS}.arrow")]
            if listed == self._names:
                return False
            try:
                self._open_segments([int(name.split(".")[0]) for name in listed])
            except BadIndexError:
                # A writer may have put one segment in the place of many since the names were listed.
                if attempts_left and self._store.names() != names:
                    continue
                raise
            self._names = listed
            return True
        return False

    def _open_segments(self, numbers: Sequence[int]) -> None:
        segments = {number: self._segments.get(number) or self._read(number) for number in numbers}
        self._segments = segments
        self._number_videos()

    def _number_videos(self) -> None:
        """Which segment each video belongs to, and a number for each video that has moments."""
        owners: dict[str, tuple[Segment, int]] = {}
        for segment in self._segments.values():
            for place, entry in enumerate(segment.entries):
                owners[entry.video] = (segment, place)
        self._owners = owners

        self.videos: list[IndexedVideo] = []
        self.failed: list[IndexedVideo] = []
        self._places: list[tuple[Segment, int]] = []
        means = []
        numbers = {segment.number: np.full(len(segment.entries), -1) for segment in self._segments.values()}
        for video in sorted(owners):
            segment, place = owners[video]
            entry = segment.entries[place]
            if entry.status == FAILED:
                self.failed.append(entry)
            elif entry.status != GONE:
                numbers[segment.number][place] = len(self.videos)
                self.videos.append(entry)
                self._places.append((segment, place))
                means.append(_as_numpy(segment.means[place].values))
        stacked = np.stack(means) if means else np.zeros((0, self._dimension), np.float16)
        self.means = torch.from_numpy(stacked.astype(np.float32))

        # For each window the number of its video, -1 where the video has moved on to a later segment.
        self._first_rows = {}
        self._row_videos = {}
        self.numbers = {entry.video: number for number, entry in enumerate(self.videos)}
        first_row = 0
        for segment in self._segments.values():
            self._first_rows[segment.number] = first_row
            self._row_videos[segment.number] = numbers[segment.number][segment.local_video]
            first_row += len(segment.starts)
        self.num_moments = int(sum((videos >= 0).sum() for videos in self._row_videos.values()))

    def _read(self, number: int) -> Segment:
        videos = self._table(number, VIDEOS, None)
        try:
            hashes = json.loads(videos.schema.metadata[b"sha256"])
        except (TypeError, KeyError, ValueError):
            raise BadIndexError(f"{self._store.folder}: segment {number:06d} is not as written") from None
        moments = self._table(number, MOMENTS, hashes[MOMENTS])
        frames = self._table(number, FRAMES, hashes[FRAMES])
        try:
            return Segment(number, videos, moments, frames)
        except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise BadIndexError(f"{self._store.folder}: segment {number:06d}: {error}") from None

    def _table(self, number: int, kind: str, sha256: str | None) -> pa.Table:
        name = f"{number:06d}.{kind}.arrow"
        try:
            if sha256 is None:
                source = pa.BufferReader(self._store.read(name))
            else:
                source, held = self._cache.open(self._store, name, sha256)
                if held is not None:
                    self._held.append(held)
            return pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise BadIndexError(f"{self._store.folder}/{name}: cannot be read: {reason}") from None

    def add(self, rows: Iterable[VideoRows]) -> None:
        rows = list(rows)
        if rows:
            self._write(*_tables(rows, self._dimension))

    def drop(self, videos: Iterable[str]) -> None:
        self.add((IndexedVideo(video=video, size=0, mtime=0.0, status=GONE), None) for video in videos)

    def tidy(self) -> None:
        """One segment in the place of many, and of those whose videos have mostly moved on."""
        live = sum(len(entries) for entries in (self.videos, self.failed))
        listed = sum(len(segment.entries) for segment in self._segments.values())
        if len(self._segments) > MANY_SEGMENTS or listed > 2 * max(live, 1):
            old = list(self._segments)
            self._write(*self._live_tables())
            self._delete(old)
        self._sweep()

    def _live_tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Everything that still counts, as the tables of one segment."""
        videos, moments, frames = [], [], []
        for video in sorted(self._owners):
            segment, place = self._owners[video]
            entry = segment.entries[place]
            if entry.status == GONE:
                continue
            first, stop = segment.first_moment[place], segment.first_moment[place + 1]
            first_frame, stop_frame = segment.first_frame[place], segment.first_frame[place + 1]
            counts = {"num_moments": int(stop - first), "num_frames": int(stop_frame - first_frame)}
            videos.append(asdict(entry) | counts | {"mean": segment.means[place].as_py()})
            moments.append(segment.moments.slice(first, stop - first))
            frames.append(segment.frames.slice(first_frame, stop_frame - first_frame))
        listed = pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA)
        empty_moments, empty_frames = moments_schema(self._dimension), frames_schema(self._dimension)
        return (
            listed,
            pa.concat_tables([empty_moments.empty_table(), *moments]),
            pa.concat_tables([empty_frames.empty_table(), *frames]),
        )

    def _write(self, videos: pa.Table, moments: pa.Table, frames: pa.Table) -> None:
        number = max(self._segments, default=0) + 1
        hashes = {
            MOMENTS: self._write_table(number, MOMENTS, moments),
            FRAMES: self._write_table(number, FRAMES, frames),
        }
        listed = videos.replace_schema_metadata({"sha256": json.dumps(hashes)})
        self._write_table(number, VIDEOS, listed)
        self.refresh()

    def _write_table(self, number: int, kind: str, table: pa.Table) -> str:
        """Returns the sha256 of the file."""
        with self._store.writing(f"{number:06d}.{kind}.arrow") as path:
            # One batch, so that all vectors lie side by side in the file.
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks(), max_chunksize=max(len(table), 1))
            return file_sha256(path)

    def _delete(self, numbers: Iterable[int]) -> None:
        # The list of videos goes first: a segment without it is not there.
        for kind in (VIDEOS, FRAMES, MOMENTS):
            for number in numbers:
                self._store.delete(f"{number:06d}.{kind}.arrow")
        self.refresh()

    def _sweep(self) -> None:
        """Delete what a killed writer has left behind. Only the one that holds the lock may call this."""
        self._store.sweep()
        for name in self._store.names():
            number, _, kind = name.partition(".")
            is_segment = number.isdigit() and kind in (f"{MOMENTS}.arrow", f"{FRAMES}.arrow")
            if is_segment and int(number) not in self._segments:
                self._store.delete(name)

    def nearest(self, query: Tensor, count: int, is_picked: np.ndarray | None) -> Candidates:
        best_scores = torch.empty(0)
        best_rows = torch.empty(0, dtype=torch.int64)
        for segment in self._segments.values():
            row_videos = self._row_videos[segment.number]
            for start in range(0, len(row_videos), CHUNK):
                videos = row_videos[start : start + CHUNK]
                is_wanted = videos >= 0
                if is_picked is not None:
                    # An index of -1 picks some video's entry: `is_wanted` has the last word.
                    is_wanted &= is_picked[videos]
                scores = torch.from_numpy(segment.vectors[start : start + CHUNK]).float() @ query
                scores.masked_fill_(torch.from_numpy(~is_wanted), float("-inf"))

                top = scores.topk(min(count, len(scores)))
                rows = top.indices + (self._first_rows[segment.number] + start)
                best_scores, order = torch.cat([best_scores, top.values]).sort(descending=True, stable=True)
                best_rows = torch.cat([best_rows, rows])[order][:count]
                best_scores = best_scores[:count]
        return self._candidates(best_rows[best_scores.isfinite()].numpy())

    def _candidates(self, rows: np.ndarray) -> Candidates:
        videos = np.zeros(len(rows), np.int64)
        starts = np.zeros(len(rows), np.float32)
        ends = np.zeros(len(rows), np.float32)
        vectors = np.zeros((len(rows), self._dimension), np.float16)
        for segment in self._segments.values():
            first = self._first_rows[segment.number]
            is_here = (rows >= first) & (rows < first + len(segment.starts))
            local = rows[is_here] - first
            videos[is_here] = self._row_videos[segment.number][local]
            starts[is_here] = segment.starts[local]
            ends[is_here] = segment.ends[local]
            vectors[is_here] = segment.vectors[local]
        return Candidates(rows, videos, starts, ends, torch.from_numpy(vectors))

    def _locate(self, row: int) -> tuple[Segment, int]:
        """The segment that holds a row, and the row's number in it."""
        for segment in self._segments.values():
            local = row - self._first_rows[segment.number]
            if 0 <= local < len(segment.starts):
                return segment, local
        raise IndexError(f"row {row}")

    def window_frames(self, row: int) -> Tensor:
        segment, local = self._locate(row)
        first = segment.first_frame[segment.local_video[local]]
        rows = first + _as_numpy(segment.moments["frames"][local].values)
        return torch.from_numpy(segment.features[rows].astype(np.float32))

    def frames_between(self, video: int, start: float, end: float) -> FrameFeatures:
        segment, place = self._places[video]
        rows = slice(segment.first_frame[place], segment.first_frame[place + 1])
        return select_frames(segment.times[rows], segment.features[rows], start, end)

    def window_at(self, video: int, start: float) -> int:
        segment, place = self._places[video]
        first, stop = segment.first_moment[place], segment.first_moment[place + 1]
        before = np.searchsorted(segment.starts[first:stop], start + 1e-3, side="right")
        return int(self._first_rows[segment.number] + first + max(before - 1, 0))

    def picture_at(self, video: int, time: float) -> int:
        segment, place = self._places[video]
        first, stop = segment.first_moment[place], segment.first_moment[place + 1]
        nearest = np.abs(segment.best[first:stop] - time).argmin()
        return int(self._first_rows[segment.number] + first + nearest)

    def vector(self, row: int) -> Tensor:
        segment, local = self._locate(row)
        return torch.from_numpy(segment.vectors[local].astype(np.float32))

    def thumbnail(self, row: int) -> bytes:
        segment, local = self._locate(row)
        return segment.moments["thumbnail"][local].as_py()

    def moments(self) -> Iterator[pa.Table]:
        for segment in self._segments.values():
            is_live = self._row_videos[segment.number] >= 0
            for first in range(0, len(is_live), EXPORTED):
                moments = segment.moments.slice(first, EXPORTED).filter(is_live[first : first + EXPORTED])
                yield moments.drop_columns("frames")


def select_frames(times: np.ndarray, features: np.ndarray, start: float, end: float) -> FrameFeatures:
    """Those from `start` to `end`, in order of time. times: float32 [U], features: float16 [U, D]."""
    places = np.flatnonzero((times >= start - 1e-3) & (times <= end + 1e-3))
    places = places[np.argsort(times[places], kind="stable")]
    return FrameFeatures(times[places], torch.from_numpy(features[places].astype(np.float32)))


def moments_schema(dimension: int) -> pa.Schema:
    return pa.schema(
        [
            ("video", pa.string()),
            ("start", pa.float32()),
            ("end", pa.float32()),
            ("best", pa.float32()),
            ("vector", pa.list_(pa.float16(), dimension)),
            ("frames", pa.list_(pa.int32())),
            ("thumbnail", pa.binary()),
        ]
    )


def frames_schema(dimension: int) -> pa.Schema:
    return pa.schema(
        [
            ("video", pa.string()),
            ("time", pa.float32()),
            ("features", pa.list_(pa.float16(), dimension)),
        ]
    )


def _tables(rows: Sequence[VideoRows], dimension: int) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The tables of one segment: its videos, their moments, their frames."""
    videos = []
    moments = [moments_schema(dimension).empty_table()]
    frames = [frames_schema(dimension).empty_table()]
    for entry, windows in rows:
        counts: dict[str, Any] = {"num_moments": 0, "num_frames": 0, "mean": None}
        if windows is not None:
            counts = {
                "num_moments": len(windows.spans),
                "num_frames": len(windows.times),
                "mean": windows.mean(),
            }
            moments.append(moments_table(entry.video, windows))
            frames.append(frames_table(entry.video, windows))
        videos.append(asdict(entry) | counts)
    return (
        pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA),
        pa.concat_tables(moments),
        pa.concat_tables(frames),
    )


def moments_table(video: str, windows: MomentRows) -> pa.Table:
    """`moments_schema` of one video's windows."""
    starts, ends = zip(*windows.spans, strict=True)
    return pa.table(
        {
            "video": [video] * len(windows.spans),
            "start": pa.array(starts, pa.float32()),
            "end": pa.array(ends, pa.float32()),
            "best": pa.array(windows.best, pa.float32()),
            "vector": _fixed_lists(windows.vectors),
            "frames": pa.array([list(rows) for rows in windows.frames], pa.list_(pa.int32())),
            "thumbnail": pa.array(list(windows.thumbnails), pa.binary()),
        },
        schema=moments_schema(windows.vectors.shape[1]),
    )


def frames_table(video: str, windows: MomentRows) -> pa.Table:
    """`frames_schema` of one video's encoded frames."""
    return pa.table(
        {
            "video": [video] * len(windows.times),
            "time": pa.array(windows.times, pa.float32()),
            "features": _fixed_lists(windows.features),
        },
        schema=frames_schema(windows.features.shape[1]),
    )


def _fixed_lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """float16 [N, D] as an Arrow column."""
    flat = pa.array(np.ascontiguousarray(matrix, np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def _matrix(table: pa.Table, column: str) -> np.ndarray:
    """float16 [N, D] over the very memory of a column of fixed-size lists."""
    dimension = table.schema.field(column).type.list_size
    if len(table) == 0:
        return np.zeros((0, dimension), np.float16)
    chunk = table[column].combine_chunks() if table[column].num_chunks > 1 else table[column].chunk(0)
    return _as_numpy(chunk.flatten()).reshape(-1, dimension)


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return _as_numpy(table[column].combine_chunks())


def _offsets(counts: pa.ChunkedArray) -> np.ndarray:
    """Where each video's rows begin, and where the last one's end: int64 [V + 1]."""
    return np.concatenate([[0], np.cumsum(_as_numpy(counts.combine_chunks()))]).astype(np.int64)


def _as_numpy(values: pa.Array) -> np.ndarray:
    """The numbers of an Arrow array without nulls, not copied."""
    # Arrow's own `to_numpy` imports pandas, which a cold start has to wait for.
    return np.from_dlpack(values)
