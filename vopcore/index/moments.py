"""From a video to windows, and from the windows that match a text to the seconds that it describes.

Pure arithmetic: no files, no model. All times are seconds from the start of the video.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

WHOLE = 1.5  # a video of at most this many window lengths is one window
MERGE_LEVEL = 0.5  # of the way from a video's mean to its best window, where neighbours still belong to it
FRAME_LEVEL = 0.5  # the same for frames, where an answer begins and ends
SLACK = 1e-6  # seconds; sums of float32 steps are not exact


class Span(NamedTuple):
    """A stretch of a video, in seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class WindowRule:
    """Windows of `seconds`, one beginning `every` seconds."""

    seconds: float = 8.0
    every: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.every <= self.seconds < float("inf"):
            raise ValueError(
                f"seconds: {self.seconds:g}, every: {self.every:g}; windows need 0 < every <= seconds, "
                "or parts of a video would be in none"
            )

    def windows(self, duration: float) -> list[Span]:
        """The windows of a video of `duration` seconds, in order; together they cover it.

        A short video is one window. The last window ends with the video, so it may be shorter than the
        others, by less than `every`.
        """
        if duration <= WHOLE * self.seconds + SLACK:
            return [Span(0.0, duration)]

        spans = []
        number = 0
        while True:
            start = number * self.every
            end = start + self.seconds
            if end >= duration - SLACK:
                spans.append(Span(start, duration))
                return spans
            spans.append(Span(start, end))
            number += 1


@dataclass(frozen=True)
class ScoredWindow:
    """A window that was compared with a query. `row` tells the engine which one it is."""

    row: int
    start: float
    end: float
    score: float


def merge_windows(
    windows: Sequence[ScoredWindow],
    base: float,
) -> list[list[ScoredWindow]]:
    """Group the windows of ONE video: neighbours that match about as well are one answer.

    The best window takes in its neighbours, left and right, as long as they touch and score at least half
    way between `base`, the video's mean frame, and the best. The best of what is left begins the next group.
    Groups come best first, the windows of a group in order of time.
    """
    in_order = sorted(windows, key=lambda window: (window.start, window.end))
    by_score = sorted(range(len(in_order)), key=lambda place: -in_order[place].score)
    is_taken = [False] * len(in_order)

    groups = []
    for seed in by_score:
        if is_taken[seed]:
            continue
        best = in_order[seed].score
        threshold = min(best, base + MERGE_LEVEL * (best - base))

        first = seed
        while first > 0 and _joins(in_order[first - 1], in_order[first], is_taken[first - 1], threshold):
            first -= 1
        last = seed
        while last + 1 < len(in_order) and _follows(
            in_order[last], in_order[last + 1], is_taken[last + 1], threshold
        ):
            last += 1

        for place in range(first, last + 1):
            is_taken[place] = True
        groups.append(in_order[first : last + 1])
    return groups


def _joins(
    earlier: ScoredWindow,
    window: ScoredWindow,
    is_taken: bool,
    threshold: float,
) -> bool:
    """Whether the window before is part of the same answer."""
    return not is_taken and earlier.end >= window.start - SLACK and earlier.score >= threshold


def _follows(
    window: ScoredWindow,
    later: ScoredWindow,
    is_taken: bool,
    threshold: float,
) -> bool:
    """Whether the window behind is part of the same answer."""
    return not is_taken and later.start <= window.end + SLACK and later.score >= threshold


def refine(
    times: np.ndarray,
    scores: np.ndarray,
    base: float,
    bounds: Span,
) -> tuple[Span, float]:
    """Which seconds within `bounds` match, and the time of the best frame.

    times: float [F], ascending, seconds of the frames within `bounds`; scores: float [F], their cosines with
    the query; base: the mean cosine of the whole video's frames. The answer is the run of frames whose sum of
    `score - threshold` is largest (Kadane's maximum-sum run), where the threshold is half way between `base`
    and the best frame. A frame stands for the time up to half way to its neighbours.
    """
    if len(times) == 0:
        return bounds, (bounds.start + bounds.end) / 2

    best = int(np.argmax(scores))
    best_score = float(scores[best])
    threshold = min(best_score, base + FRAME_LEVEL * (best_score - base))
    first, last = largest_run(scores - threshold)

    start = bounds.start
    if first > 0:
        start = (times[first - 1] + times[first]) / 2
    end = bounds.end
    if last + 1 < len(times):
        end = (times[last] + times[last + 1]) / 2
    return Span(float(start), float(end)), float(times[best])


def largest_run(gains: np.ndarray) -> tuple[int, int]:
    """First and last index of the run with the largest sum; at least one element. gains: float [F], F > 0."""
    best_sum = -np.inf
    best_run = (0, 0)
    current_sum = 0.0
    current_first = 0
    for place, gain in enumerate(gains):
        # A run that has sunk below zero only costs what follows it.
        if current_sum <= 0:
            current_sum = 0.0
            current_first = place
        current_sum += float(gain)
        if current_sum > best_sum:
            best_sum = current_sum
            best_run = (current_first, place)
    return best_run
