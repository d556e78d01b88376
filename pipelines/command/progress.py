"""Progress of long steps: a bar on a terminal, a line every few seconds in a log. Nothing here ends work."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

LINE_EVERY = 5.0  # seconds between lines where there is no terminal

# seconds that what counts has to answer; beyond, nothing is shown and the work goes on
ANSWER = 10.0
LOOK_EVERY = 0.5  # seconds between looks at what workers have told
MEASURED = 4.0  # seconds of work before a speed means something
SAYS = "says"  # the title under which a worker puts a line of the log


class Bar:
    """How many of `total`, how many a second, time left and a few words; on stderr."""

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
    ) -> None:
        self._title = title
        self._unit = unit
        self._total = total
        self._count = 0
        self._last_line = time.monotonic()
        # what was there when it was first shown does not count for the speed
        self._first_count = -1
        self._first_shown = 0.0
        self._has_moved = False
        self._bar = tqdm(total=total, desc=title, unit=f" {unit}") if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more will be shown."""
        if self._bar is not None:
            self._bar.close()

    def show(self, count: int, words: str = "") -> None:
        """Set how far it is. What was there when it is first called, or when it goes back as after a restart,
        does not count for the speed.
        """
        if self._first_count < 0 or count < self._count:
            self._has_moved = False
            self._start_from(count)
        elif not self._has_moved and count > self._first_count:
            # The time to the first one is that of a queue and of processes that start: it would make hours of
            # what takes minutes.
            self._has_moved = True
            self._start_from(count)

        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(count - self._bar.n)
        elif self._line_is_due(count):
            self._last_line = time.monotonic()
            print(
                f"{self._title}: {self._line(count, words)}",
                file=sys.stderr,
                flush=True,
            )
        self._count = count

    def _line_is_due(self, count: int) -> bool:
        if count == self._count:
            return False
        return count == self._total or time.monotonic() - self._last_line >= LINE_EVERY

    def _start_from(self, count: int) -> None:
        self._first_count = count
        self._first_shown = time.monotonic()
        if self._bar is not None:
            self._bar.initial = 0  # else reset draws a negative speed
            self._bar.reset()
            self._bar.initial = count
            self._bar.n = count
            self._bar.last_print_n = count

    def _line(self, count: int, words: str) -> str:
        parts = [f"{count:,}/{self._total:,} {self._unit}"]
        seconds = time.monotonic() - self._first_shown
        speed = (count - self._first_count) / seconds if seconds > MEASURED else 0
        if speed:
            parts.append(f"{speed:.1f}/s")
        if speed and count < self._total:
            left = tqdm.format_interval((self._total - count) / speed)
            parts.append(f"{left} left")
        if words:
            parts.append(words)
        return ", ".join(parts)


@dataclass(frozen=True)
class Progress:
    """How far a worker is with `title`."""

    title: str
    unit: str
    count: int
    total: int
    words: str


@ray.remote(num_cpus=0)
class Mailbox:
    """Where a worker leaves how far it is, and lines for the log: Ray keeps what it prints to itself."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._lines: list[str] = []
        self._has_workers = False

    def put(
        self,
        title: str,
        unit: str,
        count: int,
        total: int,
        words: str,
    ) -> None:
        if title == SAYS:
            self._lines.append(words)
        else:
            self._progress = Progress(
                title,
                unit,
                count,
                total,
                words,
            )

    def get(self, num_read: int) -> tuple[Progress | None, list[str]]:
        """How far the work is, and the lines behind the first `num_read`."""
        return self._progress, self._lines[num_read:]

    def workers_begin(self) -> None:
        self._has_workers = True

    def workers_end(self) -> None:
        self._has_workers = False

    def has_workers(self) -> bool:
        return self._has_workers


def beside_driver(kind: Any) -> Any:  # noqa: ANN401 - Ray hides a class and its handle behind one type
    """A new actor on the driver's own node: any other may die without the run dying too."""
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(),
        soft=False,
    )
    return kind.options(scheduling_strategy=here).remote()


@contextmanager
def remote_bars(name: str) -> Iterator[Any]:
    """Bars that follow the Mailbox it yields, a new one for each title, and the lines that are put there.

    A mailbox that dies, as under the memory monitor, ends the bars and nothing else.
    """
    mailbox = beside_driver(Mailbox)
    stop = threading.Event()
    thread = threading.Thread(
        target=_follow,
        args=(name, mailbox, stop),
        daemon=True,
    )
    thread.start()
    try:
        yield mailbox
    finally:
        stop.set()
        thread.join(timeout=ANSWER)
        with suppress(Exception):  # it is gone already, or Ray is
            ray.kill(mailbox)


def _follow(name: str, mailbox: Any, stop: threading.Event) -> None:  # noqa: ANN401 - a handle of Ray's
    """Show what the mailbox gets until `stop`, and once more then."""
    title = ""
    bar: Bar | None = None
    num_read = 0
    ends = False
    while not ends:
        ends = stop.wait(LOOK_EVERY)
        try:
            progress, lines = ray.get(mailbox.get.remote(num_read), timeout=ANSWER)
        except ray.exceptions.GetTimeoutError:
            continue
        except Exception:  # nothing left to show; the work goes on
            break

        num_read += len(lines)
        for line in lines:
            print(f"{name}: {line}", file=sys.stderr, flush=True)
        if progress is None:
            continue
        if bar is None or progress.title != title:
            if bar is not None:
                bar.close()
            title = progress.title
            bar = Bar(f"{name}: {title}", progress.total, progress.unit)
        bar.show(progress.count, progress.words)

    if bar is not None:
        bar.close()
