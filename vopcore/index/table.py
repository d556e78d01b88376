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

# The files of a segment, by what is in their names.
VIDEOS = "videos"
MOMENTS = "moments"
FRAMES = "frames"

# Seconds by which a time that went through float32 may be off.
TIME_SLACK = 1e-3

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

    def nearest(
        self,
        query: Tensor,
        count: int,
        is_picked: np.ndarray | None,
    ) -> Candidates:
        """query: unit float32 [D]. The `count` windows with the largest products, of the picked videos
        (bool [V]; None: all), best first."""

    def window_frames(self, row: int) -> Tensor:
        """The features a window was made of, float32 [F, D]."""

    def frames_between(
        self,
        video: int,
        start: float,
        end: float,
    ) -> FrameFeatures:
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

    def __init__(
        self,
        number: int,
        videos: pa.Table,
        moments: pa.Table,
        frames: pa.Table,
    ) -> None:
        self.number = number
        self.moments = moments
        self.frames = frames
        self.means = videos["mean"]

        rows = videos.select(_ENTRY_COLUMNS).to_pylist()
        self.entries = [IndexedVideo(**row) for row in rows]

        # Rows of a video stand together, in the order of the list of videos.
        self.first_moment = _offsets(videos["num_moments"])
        self.first_frame = _offsets(videos["num_frames"])
        self.vectors = _matrix(moments, "vector")
        self.features = _matrix(frames, "features")
        self.starts = _numbers(moments, "start")
        self.ends = _numbers(moments, "end")
        self.best = _numbers(moments, "best")
        self.times = _numbers(frames, "time")

        # For each window the place of its video in `entries`.
        places = np.arange(len(self.entries))
        counts = np.diff(self.first_moment)
        self.local_video = np.repeat(places, counts)

    def rows_of(self, place: int) -> slice:
        """The windows of the video at `place`."""
        first = self.first_moment[place]
        stop = self.first_moment[place + 1]
        return slice(first, stop)

    def frame_rows_of(self, place: int) -> slice:
        """The encoded frames of the video at `place`."""
        first = self.first_frame[place]
        stop = self.first_frame[place + 1]
        return slice(first, stop)


_ENTRY_COLUMNS = ["video", "size", "mtime", "status", "error", "duration"]


class ArrowMoments:
    """The exact engine over the segments of a folder or bucket."""

    def __init__(
        self,
        store: Store,
        dimension: int,
        cache: ShardCache | None = None,
    ) -> None:
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

            numbers = [int(name.split(".")[0]) for name in listed]
            try:
                self._open_segments(numbers)
            except BadIndexError:
                # A writer may have put one segment in the place of many since the names were listed.
                if attempts_left and self._store.names() != names:
                    continue
                raise
            self._names = listed
            return True
        return False

    def _open_segments(self, numbers: Sequence[int]) -> None:
        segments = {}
        for number in numbers:
            segment = self._segments.get(number)
            segments[number] = segment or self._read(number)

        # Only now: where one cannot be read, all stay as they were.
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
        numbers = {}
        for segment in self._segments.values():
            numbers[segment.number] = np.full(len(segment.entries), -1)

        for video in sorted(owners):
            segment, place = owners[video]
            entry = segment.entries[place]
            if entry.status == FAILED:
                self.failed.append(entry)
            elif entry.status != GONE:
                numbers[segment.number][place] = len(self.videos)
                self.videos.append(entry)
                self._places.append((segment, place))
                mean = segment.means[place].values
                means.append(_as_numpy(mean))

        stacked = np.zeros((0, self._dimension), np.float16)
        if means:
            stacked = np.stack(means)
        self.means = torch.from_numpy(stacked.astype(np.float32))

        # For each window the number of its video, -1 where the video has moved on to a later segment.
        self._first_rows = {}
        self._row_videos = {}
        self.numbers = {entry.video: number for number, entry in enumerate(self.videos)}
        self.num_moments = 0
        first_row = 0
        for segment in self._segments.values():
            video_numbers = numbers[segment.number]
            row_videos = video_numbers[segment.local_video]
            self._row_videos[segment.number] = row_videos
            self.num_moments += int((row_videos >= 0).sum())

            self._first_rows[segment.number] = first_row
            first_row += len(segment.starts)

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

    def _table(
        self,
        number: int,
        kind: str,
        sha256: str | None,
    ) -> pa.Table:
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
            videos, moments, frames = _tables(rows, self._dimension)
            self._write(videos, moments, frames)

    def drop(self, videos: Iterable[str]) -> None:
        rows: list[VideoRows] = []
        for video in videos:
            entry = IndexedVideo(
                video=video,
                size=0,
                mtime=0.0,
                status=GONE,
            )
            rows.append((entry, None))
        self.add(rows)

    def tidy(self) -> None:
        """One segment in the place of many, and of those whose videos have mostly moved on."""
        num_live = len(self.videos) + len(self.failed)
        num_listed = sum(len(segment.entries) for segment in self._segments.values())
        has_many = len(self._segments) > MANY_SEGMENTS
        is_mostly_stale = num_listed > 2 * max(num_live, 1)

        if has_many or is_mostly_stale:
            old = list(self._segments)
            videos, moments, frames = self._live_tables()
            self._write(videos, moments, frames)
            self._delete(old)
        self._sweep()

    def _live_tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Everything that still counts, as the tables of one segment."""
        videos = []
        moments = [moments_schema(self._dimension).empty_table()]
        frames = [frames_schema(self._dimension).empty_table()]

        for video in sorted(self._owners):
            segment, place = self._owners[video]
            entry = segment.entries[place]
            if entry.status == GONE:
                continue

            rows = segment.rows_of(place)
            frame_rows = segment.frame_rows_of(place)
            num_moments = int(rows.stop - rows.start)
            num_frames = int(frame_rows.stop - frame_rows.start)

            facts = {
                "num_moments": num_moments,
                "num_frames": num_frames,
                "mean": segment.means[place].as_py(),
            }
            videos.append(asdict(entry) | facts)
            moments.append(segment.moments.slice(rows.start, num_moments))
            frames.append(segment.frames.slice(frame_rows.start, num_frames))

        return (
            pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA),
            pa.concat_tables(moments),
            pa.concat_tables(frames),
        )

    def _write(
        self,
        videos: pa.Table,
        moments: pa.Table,
        frames: pa.Table,
    ) -> None:
        number = max(self._segments, default=0) + 1
        hashes = {
            MOMENTS: self._write_table(number, MOMENTS, moments),
            FRAMES: self._write_table(number, FRAMES, frames),
        }
        listed = videos.replace_schema_metadata({"sha256": json.dumps(hashes)})
        self._write_table(number, VIDEOS, listed)
        self.refresh()

    def _write_table(
        self,
        number: int,
        kind: str,
        table: pa.Table,
    ) -> str:
        """Returns the sha256 of the file."""
        with self._store.writing(f"{number:06d}.{kind}.arrow") as path:
            # One batch, so that all vectors lie side by side in the file.
            whole = table.combine_chunks()
            num_rows = max(len(table), 1)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(whole, max_chunksize=num_rows)
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
            if not number.isdigit() or kind not in (f"{MOMENTS}.arrow", f"{FRAMES}.arrow"):
                continue

            # Without its list of videos a segment is not there.
            if int(number) not in self._segments:
                self._store.delete(name)

    def nearest(
        self,
        query: Tensor,
        count: int,
        is_picked: np.ndarray | None,
    ) -> Candidates:
        best_scores = torch.empty(0)
        best_rows = torch.empty(0, dtype=torch.int64)
        for segment in self._segments.values():
            first_row = self._first_rows[segment.number]
            row_videos = self._row_videos[segment.number]
            for start in range(0, len(row_videos), CHUNK):
                chunk = slice(start, start + CHUNK)
                videos = row_videos[chunk]
                is_wanted = videos >= 0
                if is_picked is not None:
                    # An index of -1 picks some video's entry: `is_wanted` has the last word.
                    is_wanted &= is_picked[videos]

                vectors = torch.from_numpy(segment.vectors[chunk])
                scores = vectors.float() @ query
                is_unwanted = torch.from_numpy(~is_wanted)
                scores.masked_fill_(is_unwanted, float("-inf"))

                # The best so far and the best of this chunk, in one order.
                num_top = min(count, len(scores))
                top = scores.topk(num_top)
                top_rows = top.indices + (first_row + start)
                all_scores = torch.cat([best_scores, top.values])
                all_rows = torch.cat([best_rows, top_rows])
                sorted_scores, order = all_scores.sort(descending=True, stable=True)
                best_scores = sorted_scores[:count]
                best_rows = all_rows[order][:count]

        is_found = best_scores.isfinite()
        return self._candidates(best_rows[is_found].numpy())

    def _candidates(self, rows: np.ndarray) -> Candidates:
        num_rows = len(rows)
        videos = np.zeros(num_rows, np.int64)
        starts = np.zeros(num_rows, np.float32)
        ends = np.zeros(num_rows, np.float32)
        vectors = np.zeros((num_rows, self._dimension), np.float16)

        for segment in self._segments.values():
            first = self._first_rows[segment.number]
            stop = first + len(segment.starts)
            is_here = (rows >= first) & (rows < stop)
            local = rows[is_here] - first

            row_videos = self._row_videos[segment.number]
            videos[is_here] = row_videos[local]
            starts[is_here] = segment.starts[local]
            ends[is_here] = segment.ends[local]
            vectors[is_here] = segment.vectors[local]

        return Candidates(
            rows=rows,
            videos=videos,
            starts=starts,
            ends=ends,
            vectors=torch.from_numpy(vectors),
        )

    def _locate(self, row: int) -> tuple[Segment, int]:
        """The segment that holds a row, and the row's number in it."""
        for segment in self._segments.values():
            local = row - self._first_rows[segment.number]
            if 0 <= local < len(segment.starts):
                return segment, local
        raise IndexError(f"row {row}")

    def window_frames(self, row: int) -> Tensor:
        segment, local = self._locate(row)
        place = segment.local_video[local]

        # A window names its frames by their numbers in the video.
        numbers = segment.moments["frames"][local].values
        rows = segment.first_frame[place] + _as_numpy(numbers)
        features = segment.features[rows].astype(np.float32)
        return torch.from_numpy(features)

    def frames_between(
        self,
        video: int,
        start: float,
        end: float,
    ) -> FrameFeatures:
        segment, place = self._places[video]
        rows = segment.frame_rows_of(place)
        return select_frames(
            segment.times[rows],
            segment.features[rows],
            start,
            end,
        )

    def window_at(self, video: int, start: float) -> int:
        segment, place = self._places[video]
        rows = segment.rows_of(place)
        starts = segment.starts[rows]
        num_before = np.searchsorted(starts, start + TIME_SLACK, side="right")
        number = max(num_before - 1, 0)
        return int(self._first_rows[segment.number] + rows.start + number)

    def picture_at(self, video: int, time: float) -> int:
        segment, place = self._places[video]
        rows = segment.rows_of(place)
        times: np.ndarray = segment.best[rows]
        distances = np.abs(times - time)
        nearest = np.argmin(distances)
        return int(self._first_rows[segment.number] + rows.start + nearest)

    def vector(self, row: int) -> Tensor:
        segment, local = self._locate(row)
        vector = segment.vectors[local].astype(np.float32)
        return torch.from_numpy(vector)

    def thumbnail(self, row: int) -> bytes:
        segment, local = self._locate(row)
        return segment.moments["thumbnail"][local].as_py()

    def moments(self) -> Iterator[pa.Table]:
        for segment in self._segments.values():
            row_videos = self._row_videos[segment.number]
            is_live = row_videos >= 0
            for first in range(0, len(is_live), EXPORTED):
                is_kept = is_live[first : first + EXPORTED]
                moments = segment.moments.slice(first, EXPORTED)
                live_moments = moments.filter(is_kept)
                yield live_moments.drop_columns("frames")


def select_frames(
    times: np.ndarray,
    features: np.ndarray,
    start: float,
    end: float,
) -> FrameFeatures:
    """Those from `start` to `end`, in order of time. times: float32 [U], features: float16 [U, D]."""
    is_after_start = times >= start - TIME_SLACK
    is_before_end = times <= end + TIME_SLACK
    places = np.flatnonzero(is_after_start & is_before_end)

    order = np.argsort(times[places], kind="stable")
    places = places[order]
    selected = features[places].astype(np.float32)
    return FrameFeatures(times[places], torch.from_numpy(selected))


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


def _tables(
    rows: Sequence[VideoRows],
    dimension: int,
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The tables of one segment: its videos, their moments, their frames."""
    videos = []
    moments = [moments_schema(dimension).empty_table()]
    frames = [frames_schema(dimension).empty_table()]
    for entry, windows in rows:
        counts: dict[str, Any] = {
            "num_moments": 0,
            "num_frames": 0,
            "mean": None,
        }
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
    starts = [start for start, _ in windows.spans]
    ends = [end for _, end in windows.spans]
    frames = [list(rows) for rows in windows.frames]
    thumbnails = list(windows.thumbnails)

    columns = {
        "video": [video] * len(windows.spans),
        "start": pa.array(starts, pa.float32()),
        "end": pa.array(ends, pa.float32()),
        "best": pa.array(windows.best, pa.float32()),
        "vector": _fixed_lists(windows.vectors),
        "frames": pa.array(frames, pa.list_(pa.int32())),
        "thumbnail": pa.array(thumbnails, pa.binary()),
    }
    dimension = windows.vectors.shape[1]
    return pa.table(columns, schema=moments_schema(dimension))


def frames_table(video: str, windows: MomentRows) -> pa.Table:
    """`frames_schema` of one video's encoded frames."""
    columns = {
        "video": [video] * len(windows.times),
        "time": pa.array(windows.times, pa.float32()),
        "features": _fixed_lists(windows.features),
    }
    dimension = windows.features.shape[1]
    return pa.table(columns, schema=frames_schema(dimension))


def _fixed_lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """float16 [N, D] as an Arrow column."""
    contiguous = np.ascontiguousarray(matrix, np.float16)
    flat = pa.array(contiguous.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def _matrix(table: pa.Table, column: str) -> np.ndarray:
    """float16 [N, D] over the very memory of a column of fixed-size lists."""
    dimension = table.schema.field(column).type.list_size
    if len(table) == 0:
        return np.zeros((0, dimension), np.float16)

    # One chunk is the mapped file itself; several would have to be copied together.
    chunks = table[column]
    chunk = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    flat = _as_numpy(chunk.flatten())
    return flat.reshape(-1, dimension)


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return _as_numpy(table[column].combine_chunks())


def _offsets(counts: pa.ChunkedArray) -> np.ndarray:
    """Where each video's rows begin, and where the last one's end: int64 [V + 1]."""
    numbers = _as_numpy(counts.combine_chunks())
    ends = np.cumsum(numbers)
    return np.concatenate([[0], ends]).astype(np.int64)


def _as_numpy(values: pa.Array) -> np.ndarray:
    """The numbers of an Arrow array without nulls, not copied."""
    # Arrow's own `to_numpy` imports pandas, which a cold start has to wait for.
    return np.from_dlpack(values)
