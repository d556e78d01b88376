"""Progress of long steps: a bar on a terminal, a line every few seconds in a log."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

LINE_EVERY = 5.0  # seconds between lines where there is no terminal


class Bar:
    """How many of `total`, how many a second, time left and a few words; on stderr."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._unit, self._total = what, unit, total
        self._said = time.monotonic()
        self._done, self._first = 0, -1
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}") if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, words: str = "") -> None:
        """Set how far it is. What was done when it is first called, or when it goes back as after a restart,
        does not count for the speed.
        """
        if self._first < 0 or done < self._done:
            self._start_from(done)
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(done - self._bar.n)
        elif done != self._done and (done == self._total or time.monotonic() - self._said >= LINE_EVERY):
            self._said = time.monotonic()
            print(f"{self._what}: {self._line(done, words)}", file=sys.stderr, flush=True)
        self._done = done

    def _start_from(self, done: int) -> None:
        self._first, self._began = done, time.monotonic()
        if self._bar is not None:
            self._bar.initial = 0  # else reset draws a negative speed
            self._bar.reset()
            self._bar.initial = self._bar.n = self._bar.last_print_n = done

    def _line(self, done: int, words: str) -> str:
        parts, seconds = [f"{done:,}/{self._total:,} {self._unit}"], time.monotonic() - self._began
        speed = (done - self._first) / seconds if seconds > 1 else 0
        if speed:
            left = tqdm.format_interval((self._total - done) / speed)
            parts += [f"{speed:.1f}/s"] + [f"{left} left"] * (done < self._total)
        return ", ".join([*parts, words] if words else parts)


@ray.remote(num_cpus=0)
class Mailbox:
    """Where a worker leaves how far it is: (what, unit, done, total, words)."""

    def __init__(self) -> None:
        self._news: tuple[str, str, int, int, str] | None = None

    def put(self, what: str, unit: str, done: int, total: int, words: str) -> None:
        self._news = (what, unit, done, total, words)

    def get(self) -> tuple[str, str, int, int, str] | None:
        return self._news


def beside_driver(kind: ray.actor.ActorClass) -> ray.actor.ActorHandle:
    """A new actor on the driver's own node: any other may die without the run dying too."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return kind.options(scheduling_strategy=here).remote()


@contextmanager
def remote_bars(name: str) -> Iterator[ray.actor.ActorHandle]:
    """Bars that follow the Mailbox it yields, a new one for each `what`."""
    mailbox, stop = beside_driver(Mailbox), threading.Event()

    def follow() -> None:
        showing, bar = None, None
        while not stop.wait(0.5):
            try:
                news = ray.get(mailbox.get.remote())
            except ray.exceptions.RayError:  # Ray is going down: nothing left to show
                break
            if news is None:
                continue
            what, unit, done, total, words = news
            if what != showing:
                if bar is not None:
                    bar.__exit__()
                showing, bar = what, Bar(f"{name}: {what}", total, unit)
            bar.show(done, words)
        if bar is not None:
            bar.__exit__()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        stop.set()
        thread.join()
        ray.kill(mailbox)
