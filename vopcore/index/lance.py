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
    EXPORTED,
    FAILED,
    GONE,
    TIME_SLACK,
    Candidates,
    FrameFeatures,
    IndexedVideo,
    MomentRows,
    VideoRows,
    moments_schema,
    select_frames,
)
from vopcore.storage import Store, below

INDEX_FROM = 50_000  # moments; fewer are compared one by one
ROWS_PER_PARTITION = 1_000
MAX_PARTITIONS = 4_096
SHARE_OF_PARTITIONS = 0.05  # looked at per query
MIN_PARTITIONS = 20
NAMES_AT_ONCE = 500  # in one condition
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
        failed = listed.filter(is_failed)
        indexed = listed.filter(pc.invert(is_failed))

        self.failed = _entries(failed)
        self.videos = _entries(indexed)
        self.numbers = {entry.video: number for number, entry in enumerate(self.videos)}
        means = _vectors(indexed, "mean", self._dimension)
        self.means = means.float()
        self.num_moments = self._moments.count_rows()
        self._has_index = bool(self._moments.list_indices())
        self._version = version
        return True

    def add(self, rows: Iterable[VideoRows]) -> None:
        rows = list(rows)
        if not rows:
            return

        videos = [entry.video for entry, _ in rows]
        self._forget(videos)

        first_row = self._next_row()
        moments = []
        for entry, windows in rows:
            if windows is not None:
                table = _moments_of(
                    entry.video,
                    windows,
                    first_row,
                    self._dimension,
                )
                moments.append(table)
                first_row += len(windows.spans)
        if moments:
            self._moments.add(pa.concat_tables(moments))

        # The list comes last: moments without an entry in it do not count.
        listed = []
        for entry, windows in rows:
            if entry.status == GONE:
                continue
            mean = np.zeros(self._dimension, np.float16)
            if windows is not None:
                mean = windows.mean()
            listed.append(asdict(entry) | {"mean": mean})

        if listed:
            schema = _videos_schema(self._dimension)
            self._videos.add(pa.Table.from_pylist(listed, schema=schema))
        self.refresh()

    def drop(self, videos: Iterable[str]) -> None:
        self._forget(list(videos))
        self.refresh()

    def _forget(self, videos: list[str]) -> None:
        for first in range(0, len(videos), NAMES_AT_ONCE):
            names = videos[first : first + NAMES_AT_ONCE]
            condition = f"video IN ({_quoted(names)})"

            # The list goes first: moments without an entry in it do not count.
            self._videos.delete(condition)
            self._moments.delete(condition)

    def tidy(self) -> None:
        """Drop the moments of a killed update, join small files, and index the vectors where it pays."""
        videos = self._column("video")
        stored = pc.unique(videos).to_pylist()
        abandoned = set(stored) - set(self.numbers)
        self._forget(sorted(abandoned))

        # An index that is there takes in new moments in `optimize`.
        num_moments = self._moments.count_rows()
        if not self._has_index and num_moments >= INDEX_FROM:
            from lancedb.index import IvfFlat

            num_partitions = _partitions(num_moments)
            config = IvfFlat(distance_type="dot", num_partitions=num_partitions)
            self._moments.create_index("vector", config=config)
        self._moments.optimize()
        self._videos.optimize()
        self.refresh()

    def nearest(
        self,
        query: Tensor,
        count: int,
        is_picked: np.ndarray | None,
    ) -> Candidates:
        # LanceDB gives it the type of all kinds of queries.
        request: Any = self._moments.search(query.numpy(), vector_column_name="vector")
        request = request.distance_type("dot")
        request = request.select([*COLUMNS, "_distance"])
        most = max(self.num_moments, 1)
        request = request.limit(min(count * REFINED, most))

        if is_picked is not None:
            condition = self._condition(is_picked)
            if condition is None:
                nothing = _no_rows(self._dimension)
                return _candidates(nothing, self.numbers, query, count)
            request = request.where(condition, prefilter=True)

        if self._has_index:
            num_partitions = _partitions(self.num_moments)
            share = int(SHARE_OF_PARTITIONS * num_partitions)
            request = request.nprobes(max(MIN_PARTITIONS, share))

        nearby = request.to_arrow()
        return _candidates(nearby, self.numbers, query, count)

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
        window = self._one(f"row = {row}", ["features"])
        features = np.array(window["features"], np.float32)
        return torch.tensor(features)

    def frames_between(
        self,
        video: int,
        start: float,
        end: float,
    ) -> FrameFeatures:
        name = _quoted([self.videos[video].video])
        condition = f'video = {name} AND "end" >= {start} AND start <= {end}'
        rows = self._where(condition, ["times", "features"])
        times: list[float] = []
        features: list[list[float]] = []
        for row in rows:
            times += row["times"]
            features += row["features"]

        # A frame that two windows share is there twice.
        matrix = np.array(features, np.float16).reshape(-1, self._dimension)
        all_times = np.array(times, np.float32)
        unique_times, places = np.unique(all_times, return_index=True)
        return select_frames(unique_times, matrix[places], start, end)

    def window_at(self, video: int, start: float) -> int:
        name = _quoted([self.videos[video].video])
        rows = self._where(f"video = {name}", ["row", "start"])
        rows.sort(key=lambda row: row["start"])
        window = rows[0]
        for row in rows:
            if row["start"] <= start + TIME_SLACK:
                window = row
        return int(window["row"])

    def picture_at(self, video: int, time: float) -> int:
        name = _quoted([self.videos[video].video])
        rows = self._where(f"video = {name}", ["row", "start", "best"])
        rows.sort(key=lambda row: (abs(row["best"] - time), row["start"]))
        return int(rows[0]["row"])

    def vector(self, row: int) -> Tensor:
        window = self._one(f"row = {row}", ["vector"])
        vector = np.array(window["vector"], np.float32)
        return torch.tensor(vector)

    def thumbnail(self, row: int) -> bytes:
        window = self._one(f"row = {row}", ["thumbnail"])
        return window["thumbnail"]

    def moments(self) -> Iterator[pa.Table]:
        # The same columns as of the exact engine.
        exported = moments_schema(self._dimension)
        columns = [name for name in exported.names if name != "frames"]
        for first in range(0, self.num_moments, EXPORTED):
            request = self._moments.search()
            request = request.select(columns)
            request = request.offset(first).limit(EXPORTED)
            yield request.to_arrow()

    def _where(self, condition: str, columns: list[str]) -> list[dict[str, Any]]:
        request = self._moments.search()
        request = request.where(condition)
        request = request.select(columns)
        request = request.limit(self.num_moments)
        return request.to_arrow().to_pylist()

    def _column(self, name: str) -> pa.ChunkedArray:
        """One column of all moments, those of a killed update too."""
        request = self._moments.search().select([name])
        return request.to_arrow()[name]

    def _one(self, condition: str, columns: list[str]) -> dict[str, Any]:
        rows = self._where(condition, columns)
        if not rows:
            raise KeyError(condition)
        return rows[0]

    def _next_row(self) -> int:
        rows = self._column("row")
        last = pc.max(rows).as_py()
        if last is None:
            return 0
        return last + 1


def _partitions(num_moments: int) -> int:
    """Into how many clusters LanceDB divides so many vectors."""
    fitting = max(1, num_moments // ROWS_PER_PARTITION)
    return min(MAX_PARTITIONS, fitting)


def _entries(listed: pa.Table) -> list[IndexedVideo]:
    """The rows of the list of videos."""
    rows = listed.drop_columns("mean").to_pylist()
    return [IndexedVideo(**row) for row in rows]


def _vectors(
    table: pa.Table,
    column: str,
    dimension: int,
) -> Tensor:
    """float16 [N, D]: a column of fixed-size lists."""
    whole = table[column].combine_chunks()
    flat = whole.flatten().to_numpy(zero_copy_only=False)
    matrix = flat.reshape(-1, dimension).astype(np.float16)
    return torch.from_numpy(matrix)


def _candidates(
    nearby: pa.Table,
    numbers: dict[str, int],
    query: Tensor,
    count: int,
) -> Candidates:
    """The best of these windows, by the product of the query with the stored vectors."""
    # What a killed update has left has no video.
    listed = pa.array(list(numbers), pa.string())
    is_listed = pc.is_in(nearby["video"], listed)
    windows = nearby.filter(is_listed)

    names = windows["video"].to_pylist()
    videos = np.array([numbers[name] for name in names], np.int64)
    vectors = _vectors(windows, "vector", len(query))

    scores = vectors.float() @ query
    order = scores.argsort(descending=True, stable=True)
    chosen = order[:count].numpy()
    return Candidates(
        rows=windows["row"].to_numpy()[chosen],
        videos=videos[chosen],
        starts=windows["start"].to_numpy()[chosen],
        ends=windows["end"].to_numpy()[chosen],
        vectors=vectors[chosen],
    )


def _moments_of(
    video: str,
    windows: MomentRows,
    first_row: int,
    dimension: int,
) -> pa.Table:
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
    empty = _moments_schema(dimension).empty_table()
    return empty.select(COLUMNS)


def _quoted(names: Sequence[str]) -> str:
    """Names as texts of SQL."""
    texts = []
    for name in names:
        escaped = name.replace("'", "''")
        texts.append(f"'{escaped}'")
    return ", ".join(texts)
