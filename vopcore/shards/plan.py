"""What still has to be decoded, and into which shards: arithmetic on what is wanted and what is
committed.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa

from vopcore.shards.schema import Entry
from vopcore.storage import SourceFacts

TASKS_PER_CPU = 4  # at least, where there are videos enough: keeps all CPUs busy to the end


class Moment(NamedTuple):
    """A video as annotations name it: its id, its file (None: none was found), and seconds of it (None:
    the whole).
    """

    video: str
    path: str | None
    start: float | None
    end: float | None


def moments_in(annotations: pa.Table) -> list[Moment]:
    """Each video of an annotation table once, sorted by id. Raises ValueError if an id names two
    different moments.
    """
    columns = annotations.select(["video", "path", "start", "end"]).to_pydict()
    moments: dict[str, Moment] = {}
    for moment in map(Moment._make, zip(*columns.values(), strict=True)):
        if moments.setdefault(moment.video, moment) != moment:
            raise ValueError(
                f"video {moment.video!r} names two moments: {moments[moment.video][1:]} and {moment[1:]}"
            )
    return sorted(moments.values())


def is_current(entry: Entry, moment: Moment, facts: SourceFacts | None) -> bool:
    """Whether a committed entry still answers for a moment; `facts` of its file now, or None if nobody
    looked.

    Decoded frames stand until the file has another size (a copied data set has new times); a failure
    stands until anything about the file changes, so repairing a file is enough to have it tried again.
    """
    if (entry.start, entry.end) != (moment.start, moment.end):
        return False
    if facts is None:
        return True
    if entry.status == "failed":
        return facts == (entry.source_size, entry.source_mtime)
    return facts.size in (None, entry.source_size)


def rows_per_shard(num_videos: int, bytes_per_video: int, shard_megabytes: int, num_cpus: int) -> int:
    """As many as fit, but few enough to keep every CPU busy. Counts all videos, committed or not, so that a
    run that is resumed cuts the same shards."""
    fitting = max(shard_megabytes * 2**20 // bytes_per_video, 1)
    return min(fitting, max(-(-num_videos // (TASKS_PER_CPU * num_cpus)), 1))


def shard_plan(
    moments: Sequence[Moment], committed: Iterable[int], rows_per_shard: int
) -> list[tuple[int, list[Moment]]]:
    """The shards to write: a number and moments each.

    The same moments and committed shards give the same plan.
    The lowest free numbers are taken in order of the moments' ids, so a run that was killed plans just the
    shards it had not committed, under the numbers they had.
    """
    taken = set(committed)
    groups = [list(moments[i : i + rows_per_shard]) for i in range(0, len(moments), rows_per_shard)]
    free = (number for number in range(len(taken) + len(groups)) if number not in taken)
    return list(zip(free, groups, strict=False))
