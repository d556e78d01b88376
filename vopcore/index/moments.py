"""From a video to windows, and from the windows that match a text to the seconds that it describes.

Pure arithmetic: no files, no model. All times are seconds from the start of the video.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

WHOLE = 1.5  # a video of at most this many window lengths is one window

# Levels are shares of the way from what a video's mean frame scores to what the answer scores. A window that
# lies half in what is looked for scores half way, one wholly in it all the way: 0.75 tells the two apart. A
# frame of an answer's windows is more likely part of it than not from half way on. A frame beyond them, which
# no window that matched has seen, has to match nearly as well as the answer itself.
MERGE_LEVEL = 0.75
FRAME_LEVEL = 0.5
BEYOND_LEVEL = 0.9

# Seconds. What is looked for may be much shorter than a window, so the answer scores what its best stretch
# does; single frames would say more of their noise than of what they show.
STRETCH = 2.0
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

    The best window takes in its neighbours, left and right, as long as they touch and score at least
    MERGE_LEVEL of the way from `base`, the video's mean frame, to the best. The best of what is left begins
    the next group. Groups come best first, the windows of a group in order of time.
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
    found: Span,
    bounds: Span,
) -> tuple[Span, float]:
    """Which seconds within `bounds` match, and the time of the best frame, which is among them.

    times: float [F], seconds of the frames within `bounds`, in any order, some perhaps twice, as windows saw
    them; scores: float [F], their cosines with the query; base: the mean cosine of the whole video's frames;
    found: the windows that matched, within `bounds`. The answer is the run of frames about the best frame of
    `found` whose sum of `score - threshold` is largest. The threshold is at FRAME_LEVEL of the way from
    `base` to the best STRETCH of `found`, beyond `found` at BEYOND_LEVEL. A frame stands for the time up to
    half way to its neighbours.
    """
    times, scores = _each_once(times, scores)
    is_found = (times >= found.start - SLACK) & (times <= found.end + SLACK)
    if not is_found.any():
        return found, (found.start + found.end) / 2

    best = int(np.argmax(np.where(is_found, scores, -np.inf)))
    level = _best_stretch(times[is_found], scores[is_found], found.end)
    share = np.where(is_found, FRAME_LEVEL, BEYOND_LEVEL)
    thresholds = np.minimum(base + share * (level - base), scores[best])
    first, last = run_around(scores - thresholds, best)

    start = bounds.start
    if first > 0:
        start = (times[first - 1] + times[first]) / 2
    end = bounds.end
    if last + 1 < len(times):
        end = (times[last] + times[last + 1]) / 2
    return Span(float(start), float(end)), float(times[best])


def _best_stretch(
    times: np.ndarray,
    scores: np.ndarray,
    end: float,
) -> float:
    """The highest mean score of the frames of STRETCH seconds, of all frames where that is higher or `end`
    comes before. times: float [F], ascending."""
    sums = np.concatenate([[0.0], np.cumsum(scores, dtype=np.float64)])
    firsts = np.arange(len(times))
    stops = np.searchsorted(times, times + (STRETCH - SLACK))
    means = (sums[stops] - sums[firsts]) / (stops - firsts)

    is_whole = times + STRETCH <= end + SLACK
    return max(float(scores.mean()), float(means[is_whole].max(initial=-np.inf)))


def _each_once(times: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times ascending and the mean score at each. A frame has one score in each window, if those differ."""
    unique_times, places, counts = np.unique(times, return_inverse=True, return_counts=True)
    return unique_times, np.bincount(places, scores, len(unique_times)) / counts


def run_around(gains: np.ndarray, place: int) -> tuple[int, int]:
    """First and last index of the run about `place` with the largest sum. gains: float [F], F > 0."""
    to_the_right = np.cumsum(gains[place:])
    to_the_left = np.cumsum(gains[place::-1])
    return place - int(np.argmax(to_the_left)), place + int(np.argmax(to_the_right))
