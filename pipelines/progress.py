"""A progress line: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts to `total`, on stderr: how many, how many a second, how many failed, time left."""

    def __init__(self, what: str, total: int, unit: str, every: float = 5.0) -> None:
        self._what, self._total, self._unit, self._every = what, total, unit, every
        self._done = self._failed = 0
        self._started = self._said = time.monotonic()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}s") if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, done: int, failed: int) -> None:
        self._done += done
        self._failed += failed
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._failed} failed", refresh=False)
            self._bar.update(done)
        elif self._done == self._total or time.monotonic() - self._said > self._every:
            self._said = time.monotonic()
            print(f"{self._what}: {self._line()}", file=sys.stderr, flush=True)

    def _line(self) -> str:
        elapsed = time.monotonic() - self._started
        rate = self._done / max(elapsed, 1e-9)
        left = tqdm.format_interval((self._total - self._done) / max(rate, 1e-9))
        return (
            f"{self._done:,}/{self._total:,} {self._unit}s, {rate:.1f} {self._unit}s/s, "
            f"{self._failed} failed, {left} left"
        )
