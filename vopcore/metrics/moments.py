"""Moment retrieval: how well predicted stretches of a video cover those that sentences describe.

R@1 at an overlap m is the share of sentences whose best predicted span overlaps the true one by at least m,
mIoU the mean overlap; overlap is intersection over union of seconds (Gao et al., TALL, ICCV 2017). A sentence
without a prediction overlaps by 0 and stays in the denominator.
"""

from collections.abc import Sequence
from typing import NamedTuple

from vopcore.metrics import names


class PredictedSpan(NamedTuple):
    """A stretch of a video, in seconds, and how well it matches a sentence."""

    start: float
    end: float
    score: float


def overlap(
    start: float,
    end: float,
    true_start: float,
    true_end: float,
) -> float:
    """Intersection over union of two stretches; 1 for the same point in time, 0 for a point elsewhere."""
    later_start = max(start, true_start)
    earlier_end = min(end, true_end)
    intersection = earlier_end - later_start

    # of stretches that do not meet this is more than the union, but their overlap is 0 anyway
    union = max(end, true_end) - min(start, true_start)
    if union == 0:
        return 1.0
    return max(intersection, 0.0) / union


def best_overlap(
    predicted: Sequence[PredictedSpan],
    true_start: float,
    true_end: float,
) -> float:
    """The overlap of the span that scores best; 0 without any."""
    if not predicted:
        return 0.0
    best = max(predicted, key=lambda span: span.score)
    return overlap(best.start, best.end, true_start, true_end)


def moment_numbers(overlaps: Sequence[float]) -> dict[str, float]:
    """moment/R1_0.3, R1_0.5, R1_0.7 and mIoU, in percent, and how many sentences there were.

    overlaps: of each sentence's best span. {} of no sentence.
    """
    if not overlaps:
        return {}

    num_sentences = len(overlaps)
    numbers = {names.MOMENT_QUERIES: float(num_sentences)}
    for least in names.MOMENT_OVERLAPS:
        num_hits = sum(overlap >= least for overlap in overlaps)
        numbers[names.moment_recall(least)] = 100 * num_hits / num_sentences

    numbers[names.MOMENT_MIOU] = 100 * sum(overlaps) / num_sentences
    return numbers
