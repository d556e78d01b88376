"""What still has to be decoded, and into which shards: arithmetic on what is wanted and what is
committed.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vopcore.shards.index import ShardIndex

# at least, where there are videos enough: keeps all CPUs busy to the end
TASKS_PER_CPU = 4
MOMENT_COLUMNS = ["video", "path", "start", "end"]
COMPARED = ["start", "end", "status", "source_size", "source_mtime"]


class Moment(NamedTuple):
    """A video as annotations name it: its id, its file (None: none was found), and seconds of it (None:
    the whole).
    """

    video: str
    path: str | None
    start: float | None
    end: float | None


class State(IntEnum):
    """How a moment stands to what is committed."""

    CURRENT = 0  # its frames, or the reason why there are none, still hold
    TOUCHED = 1  # its file has another time and the same size: its content decides
    WANTED = 2  # to be decoded
    MISSING = 3  # to be decoded, but no file was found for it


def moment_table(annotations: pa.Table) -> pa.Table:
    """Each video of an annotation table once, sorted by id: the columns of MOMENT_COLUMNS.

    Raises ValueError if an id names two different moments.
    """
    rows = annotations.select(MOMENT_COLUMNS)
    distinct = rows.group_by(MOMENT_COLUMNS).aggregate([])
    moments = distinct.sort_by("video")
    _refuse_repeated(moments)
    return moments


def _refuse_repeated(moments: pa.Table) -> None:
    """Raises ValueError if two neighbours have the same id."""
    videos = moments.column("video").combine_chunks()
    if len(videos) < 2:
        return
    following = videos.slice(1)
    preceding = videos.slice(0, len(following))
    is_repeated = pc.equal(preceding, following)

    # -1 where there is none
    row = is_repeated.index(True).as_py()
    if row < 0:
        return

    first, second = moments_of(moments.slice(row, 2))
    ways = f"{first[1:]} and {second[1:]}"
    raise ValueError(f"video {first.video!r} names two moments: {ways}")


def moments_in(annotations: pa.Table) -> list[Moment]:
    """The rows of `moment_table`."""
    return moments_of(moment_table(annotations))


def moments_of(table: pa.Table) -> list[Moment]:
    """The rows of a table with the columns of MOMENT_COLUMNS."""
    columns = [table.column(name).to_pylist() for name in MOMENT_COLUMNS]
    return [Moment(*row) for row in zip(*columns, strict=True)]


def states(
    moments: pa.Table,
    index: ShardIndex,
    facts: pa.Table,
    clock: float = 1e-6,
) -> np.ndarray:
    """The State of each moment, int8 [N], given `facts` of its file now (FACTS, null where there is none).

    Frames stand as long as their file has the size it had when it was decoded; with another time of change
    its content decides. A failure stands until anything about the file changes, so repairing a file is
    enough to have it tried again. Frames whose file is gone stand. `clock`: seconds by which two times of
    one change may differ.
    """
    videos = moments.column("video").combine_chunks()
    rows = index.positions(videos)
    is_stored = _flags(pc.is_valid(rows))
    committed = index.table.select(COMPARED)
    stored = committed.take(rows)  # nulls where nothing is committed

    same_moment = _same(moments.column("start"), stored.column("start"))
    same_moment &= _same(moments.column("end"), stored.column("end"))

    has_path = _flags(pc.is_valid(moments.column("path")))
    is_there = _flags(pc.is_valid(facts.column("size")))
    same_size = _same(facts.column("size"), stored.column("source_size"))
    same_time = _same(facts.column("mtime"), stored.column("source_mtime"), clock)
    has_failed = _flags(pc.equal(stored.column("status"), "failed"))

    frames_stand = ~has_failed & (~is_there | (same_size & same_time))
    failure_stands = has_failed & has_path & same_size & same_time
    is_touched = ~has_failed & is_there & same_size & ~same_time

    is_comparable = is_stored & same_moment
    result = np.full(moments.num_rows, State.WANTED, np.int8)
    result[~has_path] = State.MISSING
    result[is_comparable & is_touched] = State.TOUCHED
    result[is_comparable & (frames_stand | failure_stands)] = State.CURRENT
    return result


def _flags(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Booleans, null as False, bool [N]."""
    filled = pc.fill_null(values, False)
    return filled.to_numpy(zero_copy_only=False).astype(bool)


def _same(
    left: pa.ChunkedArray,
    right: pa.ChunkedArray,
    tolerance: float = 0.0,
) -> np.ndarray:
    """Where two columns of numbers hold the same, or both nothing, bool [N]."""
    first = _numbers(left)
    second = _numbers(right)
    is_near = np.abs(first - second) <= tolerance
    has_neither = np.isnan(first) & np.isnan(second)
    return is_near | has_neither


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64 [N], NaN for null"""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def rows_per_shard(
    num_videos: int,
    bytes_per_video: int,
    shard_megabytes: int,
    num_cpus: int,
) -> int:
    """As many as fit, but few enough to keep every CPU busy.

    Counts all videos, committed or not, so that a run that is resumed cuts the same shards.
    """
    shard_bytes = shard_megabytes * 2**20
    fitting = max(shard_bytes // bytes_per_video, 1)
    num_tasks = TASKS_PER_CPU * num_cpus
    share = -(-num_videos // num_tasks)  # rounded up
    return min(fitting, max(share, 1))


def shard_plan(
    moments: Sequence[Moment],
    committed: Iterable[int],
    rows_per_shard: int,
) -> list[tuple[int, list[Moment]]]:
    """The shards to write: a number and moments each.

    The same moments and committed shards give the same plan. The lowest free numbers are taken in order of
    the moments' ids, so a run that was killed plans just the shards it had not committed, under the numbers
    they had.
    """
    taken = set(committed)
    plan = []
    number = 0
    for start in range(0, len(moments), rows_per_shard):
        while number in taken:
            number += 1
        rows = moments[start : start + rows_per_shard]
        plan.append((number, list(rows)))
        number += 1
    return plan
