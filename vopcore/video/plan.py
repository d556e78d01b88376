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

# Seconds: times are rounded to a time base, bounds were written by people.
SLACK = 1e-4


class Run(NamedTuple):
    """Packets `first`..`last` (inclusive, in decoding order) that are decoded without a break."""

    first: int
    last: int


@dataclass
class Packets:
    """What is remembered of every packet of a stream, in decoding order.

    10 bytes each, so hours of video fit. Times and durations are in the stream's time base.
    """

    pts: "array[int]" = field(default_factory=lambda: array("q"))
    is_key: bytearray = field(default_factory=bytearray)
    is_shown: bytearray = field(default_factory=bytearray)
    last_pts: int = NO_PTS
    last_duration: int = 0
    """Of the picture shown last, 0 where the file does not say."""
    ranks: np.ndarray | None = None
    """int64, the order of showing, where it is not that of the times."""

    def __len__(self) -> int:
        return len(self.pts)

    def add(
        self,
        pts: int | None,
        is_key: bool,
        is_shown: bool,
        duration: int | None = None,
    ) -> None:
        """Remember the next packet."""
        time = NO_PTS if pts is None else pts
        self.pts.append(time)
        self.is_key.append(is_key)
        self.is_shown.append(is_shown)

        # The picture shown last is not the one that comes last.
        if is_shown and time > self.last_pts:
            self.last_pts = time
            self.last_duration = duration or 0

    def end(self) -> int:
        """When the picture shown last leaves the screen."""
        return self.last_pts + self.last_duration

    def are_timed(self) -> bool:
        """Whether every packet has a time that no other has; only then can frames be planned on packets."""
        pts = np.asarray(self.pts)
        if len(pts) == 0 or NO_PTS in pts:
            return False
        return len(np.unique(pts)) == len(pts)

    def shown_in_order(self) -> np.ndarray:
        """Positions of the packets whose pictures are shown, in the order they are shown; int64."""
        sort_keys = self.ranks
        if sort_keys is None:
            sort_keys = np.asarray(self.pts)

        order = np.argsort(sort_keys, kind="stable")
        is_shown = np.frombuffer(self.is_shown, np.bool_)
        return order[is_shown[order]]

    def shows_before(self, first: int, second: int) -> bool:
        """Whether the picture of the packet at `first` is shown before that of the one at `second`."""
        if self.ranks is not None:
            return bool(self.ranks[first] < self.ranks[second])
        return self.pts[first] < self.pts[second]

    def key_positions(self) -> np.ndarray:
        """Positions of the packets with key pictures, ascending."""
        is_key = np.frombuffer(self.is_key, np.bool_)
        return np.flatnonzero(is_key)


def needed_run(
    packets: Packets,
    keys: np.ndarray,
    target: int,
) -> Run:
    """The packets that the picture of the packet at `target` is decoded from.

    `keys` are `packets.key_positions()`. In an open group a picture shown before its key picture also needs
    the group before; a picture with no key picture before it starts at the stream's first packet.
    """
    # The key picture before the target, or at it.
    index = (
        int(
            np.searchsorted(
                keys,
                target,
                side="right",
            )
        )
        - 1
    )

    while index >= 0:
        key = int(keys[index])
        if not packets.shows_before(target, key):
            return Run(key, target)
        index -= 1

    return Run(0, target)


def merge(runs: list[Run]) -> list[Run]:
    """Runs that overlap or touch made one, in decoding order."""
    merged: list[Run] = []
    for run in sorted(runs):
        previous = merged[-1] if merged else None
        if previous is None or run.first > previous.last + 1:
            merged.append(run)
            continue

        last = max(previous.last, run.last)
        merged[-1] = Run(previous.first, last)
    return merged


def runs(packets: Packets, targets: list[int]) -> list[Run]:
    """The fewest packets that show the pictures of the packets at `targets`, as runs in decoding order."""
    keys = packets.key_positions()
    return merge([needed_run(packets, keys, target) for target in targets])


def end_of(times: np.ndarray, last_duration: float = 0.0) -> float:
    """When the last of frames with ascending `times` (seconds) leaves the screen.

    Where the file does not say how long it is shown, as long as the others in the mean.
    """
    last = float(times[-1])
    if last_duration > 0:
        return last + last_duration

    num_intervals = max(len(times) - 1, 1)
    total = float(times[-1] - times[0])
    return last + total / num_intervals


def span(
    times: np.ndarray,
    start: float | None,
    end: float | None,
    last_duration: float = 0.0,
) -> tuple[int, int]:
    """First and one past the last frame of the moment [start, end) seconds.

    times: seconds of all frames, ascending. last_duration: how long the last one is shown (0: as long as the
    others). A moment between two frames is the frame on screen at `start`. Raises ValueError if the moment
    begins after the video's end.
    """
    video_end = end_of(times, last_duration)
    if start is not None and start > video_end + SLACK:
        raise ValueError(f"the moment starts at {start:g} s, but the video ends at {video_end:.2f} s")

    first = 0
    if start is not None:
        first = int(np.searchsorted(times, start - SLACK))

    stop = len(times)
    if end is not None:
        stop = int(np.searchsorted(times, end - SLACK))

    if stop > first:
        return first, stop

    # No frame begins within the moment: the one before is still on screen.
    on_screen = max(first - 1, 0)
    return on_screen, on_screen + 1
