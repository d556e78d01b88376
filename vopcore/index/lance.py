"""The engine for more moments than fit in memory: LanceDB, on a disk or in a bucket. Its only importer.

Two tables: `moments`, a row per window with the features of its frames, and `videos`, a row per file. A
video counts once its row in `videos` is there, which is written last. LanceDB finds candidates by an index
over clusters of vectors (IVF); their scores are computed from the stored vectors, as with the exact engine.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vopcore.index.header import BadIndexError
from vopcore.index.table import (
    FAILED,
    GONE,
    Candidates,
    FrameFeatures,
    IndexedVideo,
    MomentRows,
    VideoRows,
    select_frames,
)
from vopcore.storage import Store, below

INDEX_FROM = 50_000  # moments; fewer are compared one by one
ROWS_PER_PARTITION = 1_000
MAX_PARTITIONS = 4_096
SHARE_OF_PARTITIONS = 0.05  # looked at per query
MIN_PARTITIONS = 20
NAMES_AT_ONCE = 500  # in one condition
EXPORTED = 10_000
REFINED = 4  # candidates of the clusters per one that is handed on
COLUMNS = ["row", "video", "start", "end", "vector"]


def require_lancedb() -> None:
    """Raises BadIndexError, one line that says what to install, where LanceDB is missing."""
    try:
        import lancedb  # noqa: F401 - whether it is there
    except ImportError as error:
        raise BadIndexError(
            f"engine: lance needs LanceDB ({error}); install it with pip install -e '.[search]', or index "
            "anew with engine=arrow"
        ) from None


class LanceMoments:
    """The moments of an index in LanceDB; see `MomentTable` for what each method does."""

    def __init__(self, store: Store, dimension: int) -> None:
        """Raises BadIndexError where LanceDB is not installed, or cannot read the tables."""
        require_lancedb()
        import lancedb

        self._dimension = dimension
        try:
            address = below(store.folder, "lance") if not store.is_local else f"{store.root}/lance"
            self._database = lancedb.connect(address)
            self._moments = self._database.create_table(
                "moments", schema=_moments_schema(dimension), exist_ok=True
            )
            self._videos = self._database.create_table(
                "videos", schema=_videos_schema(dimension), exist_ok=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BadIndexError(f"{store.folder}/lance: cannot be read: {reason}") from None
        self._version: tuple[int, int] | None = None
        self.refresh()

    def refresh(self) -> bool:
        self._moments.checkout_latest()
        self._videos.checkout_latest()
        version = (self._moments.version, self._videos.version)
        if version == self._version:
            return False

        listed = self._videos.to_arrow().sort_by("video")
        is_failed = pc.equal(listed["status"], FAILED)
        self.failed = _entries(listed.filter(is_failed))
        self.videos = _entries(listed.filter(pc.invert(is_failed)))
        self.numbers = {entry.video: number for number, entry in enumerate(self.videos)}
        self.means = _vectors(listed.filter(pc.invert(is_failed)), "mean", self._dimension).float()
        self.num_moments = self._moments.count_rows()
        self._has_index = bool(self._moments.list_indices())
        self._version = version
        return True

    def add(self, rows: Iterable[VideoRows]) -> None:
        rows = list(rows)
        if not rows:
            return
        self._forget([entry.video for entry, _ in rows])

        first_row = self._next_row()
        moments = []
        for entry, windows in rows:
            if windows is not None:
                moments.append(_moments_of(entry.video, windows, first_row, self._dimension))
                first_row += len(windows.spans)
        if moments:
            self._moments.add(pa.concat_tables(moments))

        listed = []
        for entry, windows in rows:
            if entry.status != GONE:
                mean = np.zeros(self._dimension, np.float16) if windows is None else windows.mean()
                listed.append(asdict(entry) | {"mean": mean})
        if listed:
            self._videos.add(pa.Table.from_pylist(listed, schema=_videos_schema(self._dimension)))
        self.refresh()

    def drop(self, videos: Iterable[str]) -> None:
        self._forget(list(videos))
        self.refresh()

    def _forget(self, videos: list[str]) -> None:
        for first in range(0, len(videos), NAMES_AT_ONCE):
            condition = f"video IN ({_quoted(videos[first : first + NAMES_AT_ONCE])})"
            # The list goes first: moments without an entry in it do not count.
            self._videos.delete(condition)
            self._moments.delete(condition)

    def tidy(self) -> None:
        """Drop the moments of a killed update, join small files, and index the vectors where it pays."""
        stored = pc.unique(self._moments.search().select(["video"]).to_arrow()["video"]).to_pylist()
        self._forget(sorted(set(stored) - set(self.numbers)))

        # An index that is there takes in new moments in `optimize`.
        if not self._has_index and self._moments.count_rows() >= INDEX_FROM:
            from lancedb.index import IvfFlat

            config = IvfFlat(distance_type="dot", num_partitions=_partitions(self._moments.count_rows()))
            self._moments.create_index("vector", config=config)
        self._moments.optimize()
        self._videos.optimize()
        self.refresh()

    def nearest(self, query: Tensor, count: int, is_picked: np.ndarray | None) -> Candidates:
        # LanceDB gives it the type of all kinds of queries.
        request: Any = self._moments.search(query.numpy(), vector_column_name="vector")
        request = request.distance_type("dot").select([*COLUMNS, "_distance"])
        request = request.limit(min(count * REFINED, max(self.num_moments, 1)))
        if is_picked is not None:
            condition = self._condition(is_picked)
            if condition is None:
                return _candidates(_no_rows(self._dimension), self.numbers, query, count)
            request = request.where(condition, prefilter=True)
        if self._has_index:
            share = int(SHARE_OF_PARTITIONS * _partitions(self.num_moments))
            request = request.nprobes(max(MIN_PARTITIONS, share))
        return _candidates(request.to_arrow(), self.numbers, query, count)

    def _condition(self, is_picked: np.ndarray) -> str | None:
        """The picked videos, by the shorter of the two lists; None where there is none."""
        picked = [self.videos[number].video for number in np.flatnonzero(is_picked)]
        others = [self.videos[number].video for number in np.flatnonzero(~is_picked)]
        if not picked:
            return None
        if len(others) < len(picked):
            return f"video NOT IN ({_quoted(others)})" if others else "true"
        return f"video IN ({_quoted(picked)})"

    def window_frames(self, row: int) -> Tensor:
        features = self._one(f"row = {row}", ["features"])["features"]
        return torch.tensor(np.array(features, np.float32))

    def frames_between(self, video: int, start: float, end: float) -> FrameFeatures:
        name = _quoted([self.videos[video].video])
        rows = self._where(f'video = {name} AND "end" >= {start} AND start <= {end}', ["times", "features"])
        times: list[float] = []
        features: list[list[float]] = []
        for row in rows:
            times += row["times"]
            features += row["features"]
        matrix = np.array(features, np.float16).reshape(-1, self._dimension)

        # A frame that two windows share is there twice.
        unique_times, places = np.unique(np.array(times, np.float32), return_index=True)
        return select_frames(unique_times, matrix[places], start, end)

    def window_at(self, video: int, start: float) -> int:
        name = _quoted([self.videos[video].video])
        rows = self._where(f"video = {name}", ["row", "start"])
        rows.sort(key=lambda row: row["start"])
        window = rows[0]
        for row in rows:
            if row["start"] <= start + 1e-3:
                window = row
        return int(window["row"])

    def picture_at(self, video: int, time: float) -> int:
        name = _quoted([self.videos[video].video])
        rows = self._where(f"video = {name}", ["row", "start", "best"])
        rows.sort(key=lambda row: (abs(row["best"] - time), row["start"]))
        return int(rows[0]["row"])

    def vector(self, row: int) -> Tensor:
        return torch.tensor(np.array(self._one(f"row = {row}", ["vector"])["vector"], np.float32))

    def thumbnail(self, row: int) -> bytes:
        return self._one(f"row = {row}", ["thumbnail"])["thumbnail"]

    def moments(self) -> Iterator[pa.Table]:
        columns = ["video", "start", "end", "best", "vector", "thumbnail"]
        for first in range(0, self.num_moments, EXPORTED):
            request = self._moments.search().select(columns).offset(first).limit(EXPORTED)
            yield request.to_arrow()

    def _where(self, condition: str, columns: list[str]) -> list[dict[str, Any]]:
        request = self._moments.search().where(condition).select(columns).limit(self.num_moments)
        return request.to_arrow().to_pylist()

    def _one(self, condition: str, columns: list[str]) -> dict[str, Any]:
        rows = self._where(condition, columns)
        if not rows:
            raise KeyError(condition)
        return rows[0]

    def _next_row(self) -> int:
        last = pc.max(self._moments.search().select(["row"]).to_arrow()["row"]).as_py()
        return 0 if last is None else last + 1


def _partitions(num_moments: int) -> int:
    """Into how many clusters LanceDB divides so many vectors."""
    return min(MAX_PARTITIONS, max(1, num_moments // ROWS_PER_PARTITION))


def _entries(listed: pa.Table) -> list[IndexedVideo]:
    """The rows of the list of videos."""
    return [IndexedVideo(**row) for row in listed.drop_columns("mean").to_pylist()]


def _vectors(table: pa.Table, column: str, dimension: int) -> Tensor:
    """float16 [N, D]: a column of fixed-size lists."""
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(flat.reshape(-1, dimension).astype(np.float16))


def _candidates(nearby: pa.Table, numbers: dict[str, int], query: Tensor, count: int) -> Candidates:
    """The best of these windows, by the product of the query with the stored vectors."""
    # What a killed update has left has no video.
    is_listed = pc.is_in(nearby["video"], pa.array(list(numbers), pa.string()))
    windows = nearby.filter(is_listed)
    videos = np.array([numbers[name] for name in windows["video"].to_pylist()], np.int64)
    vectors = _vectors(windows, "vector", len(query))

    scores = vectors.float() @ query
    chosen = scores.argsort(descending=True, stable=True)[:count].numpy()
    return Candidates(
        rows=windows["row"].to_numpy()[chosen],
        videos=videos[chosen],
        starts=windows["start"].to_numpy()[chosen],
        ends=windows["end"].to_numpy()[chosen],
        vectors=vectors[chosen],
    )


def _moments_of(video: str, windows: MomentRows, first_row: int, dimension: int) -> pa.Table:
    rows = []
    for number, span in enumerate(windows.spans):
        frames = list(windows.frames[number])
        rows.append(
            {
                "row": first_row + number,
                "video": video,
                "start": span[0],
                "end": span[1],
                "best": float(windows.best[number]),
                "vector": windows.vectors[number],
                "times": windows.times[frames],
                "features": list(windows.features[frames]),
                "thumbnail": windows.thumbnails[number],
            }
        )
    return pa.Table.from_pylist(rows, schema=_moments_schema(dimension))


def _moments_schema(dimension: int) -> pa.Schema:
    vector = pa.list_(pa.float16(), dimension)
    return pa.schema(
        [
            ("row", pa.int64()),
            ("video", pa.string()),
            ("start", pa.float32()),
            ("end", pa.float32()),
            ("best", pa.float32()),
            ("vector", vector),
            ("times", pa.list_(pa.float32())),
            ("features", pa.list_(vector)),
            ("thumbnail", pa.binary()),
        ]
    )


def _videos_schema(dimension: int) -> pa.Schema:
    return pa.schema(
        [
            ("video", pa.string()),
            ("size", pa.int64()),
            ("mtime", pa.float64()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("duration", pa.float64()),
            ("mean", pa.list_(pa.float16(), dimension)),
        ]
    )


def _no_rows(dimension: int) -> pa.Table:
    return _moments_schema(dimension).empty_table().select(COLUMNS)


def _quoted(names: Sequence[str]) -> str:
    """Names as texts of SQL."""
    return ", ".join("'" + name.replace("'", "''") + "'" for name in names)
