"""How far an ingest is: tasks tell of each video, the driver's bar follows."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from pipelines.command.progress import Bar, beside_driver


@ray.remote(num_cpus=0)
class Tally:
    """For each shard, how many videos are done and how many of them failed; a shard tried again starts
    again.
    """

    def __init__(self) -> None:
        self._shards: dict[int, tuple[int, int]] = {}

    def tell(self, shard: int, done: int, failed: int) -> None:
        self._shards[shard] = (done, failed)

    def total(self) -> tuple[int, int]:
        return sum(done for done, _ in self._shards.values()), sum(
            failed for _, failed in self._shards.values()
        )


@contextmanager
def followed(total: int) -> Iterator[ray.actor.ActorHandle]:
    """A Tally for tasks to tell, shown on a bar of `total` videos."""
    tally, stop = beside_driver(Tally), threading.Event()

    def show(bar: Bar) -> None:
        done, failed = ray.get(tally.total.remote())
        bar.show(done, f"{failed} failed")

    def follow(bar: Bar) -> None:
        while not stop.wait(0.5):
            show(bar)

    with Bar("ingest", total, "videos") as bar:
        thread = threading.Thread(target=follow, args=(bar,), daemon=True)
        thread.start()
        try:
            yield tally
        finally:
            stop.set()
            thread.join()
            show(bar)
            ray.kill(tally)
