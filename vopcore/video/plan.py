"""What must be decoded to see certain frames: arithmetic on packets, before anything is decoded.

Header fields (`frames`, `duration`, frame rate) lie; packets do not. Where every packet has a time of its
own, the N-th frame is the N-th packet sorted by time, and it needs the packets from the key picture
before it up to itself.
"""

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

NO_PTS = -(2**63)


class Run(NamedTuple):
    """Packets `first`..`last` (inclusive, in decoding order) that are decoded without a break."""

    first: int
    last: int


@dataclass
class Packets:
    """What is remembered of every packet of a stream, in decoding order: 10 bytes each, so hours of
    video fit.
    """

    pts: array = field(default_factory=lambda: array("q"))
    is_key: bytearray = field(default_factory=bytearray)
    is_shown: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.pts)

    def add(self, pts: int | None, is_key: bool, is_shown: bool) -> None:
        self.pts.append(NO_PTS if pts is None else pts)
        self.is_key.append(is_key)
        self.is_shown.append(is_shown)

    def are_timed(self) -> bool:
        """Whether every packet has a time that no other has; only then can frames be planned on packets."""
        pts = np.asarray(self.pts)
        return len(pts) > 0 and NO_PTS not in pts and len(np.unique(pts)) == len(pts)

    def shown_in_order(self) -> np.ndarray:
        """Positions of the packets whose pictures are shown, in the order they are shown."""
        order = np.argsort(np.asarray(self.pts), kind="stable")
        return order[np.frombuffer(self.is_shown, np.bool_)[order]]


def runs(packets: Packets, targets: list[int]) -> list[Run]:
    """The fewest packets that show the pictures of the packets at `targets`, as runs in decoding order."""
    keys = np.flatnonzero(np.frombuffer(packets.is_key, np.bool_))
    found = sorted(Run(_key_before(packets, keys, target), target) for target in targets)
    merged = found[:1]
    for run in found[1:]:
        if run.first <= merged[-1].last + 1:
            merged[-1] = Run(merged[-1].first, max(merged[-1].last, run.last))
        else:
            merged.append(run)
    return merged


def _key_before(packets: Packets, keys: np.ndarray, target: int) -> int:
    """Where decoding starts for one picture. In an open group a picture shown before its key picture also
    needs the group before; a picture with no key picture before it starts at the stream's first
    packet."""
    position = int(np.searchsorted(keys, target, side="right")) - 1
    while position >= 0 and packets.pts[keys[position]] > packets.pts[target]:
        position -= 1
    return int(keys[position]) if position >= 0 else 0


def span(times: np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
    """First and one past the last frame of the clip [start, end) seconds, given all frames' ascending
    times.

    A clip between two frames is the frame on screen at `start`. Raises ValueError if the clip begins
    after the video's end.
    """
    slack = 1e-4  # times are rounded to a time base, bounds were written by people
    last_until = times[-1] + (times[-1] - times[0]) / max(len(times) - 1, 1)
    if start is not None and start > last_until + slack:
        raise ValueError(f"the clip starts at {start:g} s, but the video ends at {last_until:.2f} s")
    first = 0 if start is None else int(np.searchsorted(times, start - slack))
    stop = len(times) if end is None else int(np.searchsorted(times, end - slack))
    return (first, stop) if stop > first else (max(first - 1, 0), max(first, 1))
