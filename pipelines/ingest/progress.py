"""How far an ingest is: tasks tell of each video, the driver's bar follows.

Nothing here may end an ingest: where the counter is gone, the bar stands still and the shards are written.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from pipelines.command.progress import ANSWER, Bar, beside_driver

# a shard's number, its videos that are decoded, those that failed
Tell = Callable[[int, int, int], None]

# seconds between words about a queue: a process that starts takes some
SAY_EVERY = 60.0


@ray.remote(num_cpus=0)
class ShardCounts:
    """For each shard, how many videos are decoded and how many of them failed; a shard tried again starts
    again.
    """

    def __init__(self) -> None:
        self._shards: dict[int, tuple[int, int]] = {}

    def tell(
        self,
        shard: int,
        decoded: int,
        failed: int,
    ) -> None:
        """A shard's counts now."""
        self._shards[shard] = (decoded, failed)

    def has_begun(self) -> bool:
        """Whether any task is at work, or was."""
        return bool(self._shards)

    def total(self) -> tuple[int, int]:
        """The counts of all shards together."""
        decoded = sum(counts[0] for counts in self._shards.values())
        failed = sum(counts[1] for counts in self._shards.values())
        return decoded, failed


class Teller:
    """What tasks count with; silent where the counter is gone."""

    def __init__(self, counts: Any) -> None:  # noqa: ANN401 - a handle of Ray's, or None
        self._counts = counts

    def __call__(
        self,
        shard: int,
        decoded: int,
        failed: int,
    ) -> None:
        """Tell a shard's counts."""
        if self._counts is None:
            return
        with suppress(Exception):
            self._counts.tell.remote(shard, decoded, failed)


@contextmanager
def followed(total: int) -> Iterator[Teller]:
    """A Teller for tasks, shown on a bar of `total` videos."""
    counts: Any = None
    with suppress(Exception):
        counts = beside_driver(ShardCounts)
    ended = threading.Event()

    def show(bar: Bar) -> None:
        with suppress(Exception):
            decoded, failed = ray.get(counts.total.remote(), timeout=ANSWER)
            bar.show(decoded, f"{failed} failed")

    def follow(bar: Bar) -> None:
        while not ended.wait(0.5):
            show(bar)

    def say_wait() -> None:
        while not ended.wait(SAY_EVERY):
            with suppress(Exception):
                if ray.get(counts.has_begun.remote(), timeout=ANSWER):
                    return
                num_free = int(ray.available_resources().get("CPU", 0))
                if not num_free:
                    num_cpus = int(ray.cluster_resources().get("CPU", 0))
                    print(
                        f"waiting: all {num_cpus} CPUs are in use",
                        file=sys.stderr,
                        flush=True,
                    )

    with Bar("ingest", total, "videos") as bar:
        thread = threading.Thread(
            target=follow,
            args=(bar,),
            daemon=True,
        )
        thread.start()
        threading.Thread(target=say_wait, daemon=True).start()
        try:
            yield Teller(counts)
        finally:
            ended.set()
            thread.join(timeout=ANSWER)
            show(bar)
            with suppress(Exception):
                ray.kill(counts)
