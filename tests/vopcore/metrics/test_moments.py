"""Overlaps and recall of moments, against cases in closed form."""

import pytest

from vopcore.metrics.moments import PredictedSpan, best_overlap, moment_numbers, overlap


@pytest.mark.parametrize(
    ("span", "truth", "wanted"),
    [
        ((0, 10), (0, 10), 1.0),
        ((0, 10), (5, 15), 1 / 3),  # 5 of 15 seconds
        ((0, 10), (10, 20), 0.0),  # touching is not overlapping
        ((0, 10), (30, 40), 0.0),
        ((2, 4), (0, 10), 0.2),  # inside
        ((3, 3), (3, 3), 1.0),
        ((3, 3), (0, 6), 0.0),
    ],
)
def test_overlap_is_intersection_over_union(span, truth, wanted):
    assert overlap(*span, *truth) == pytest.approx(wanted)
    assert overlap(*truth, *span) == pytest.approx(wanted)


def test_the_span_that_scores_best_counts_not_the_one_that_overlaps_most():
    spans = [PredictedSpan(0, 10, 0.2), PredictedSpan(5, 10, 0.9)]
    assert best_overlap(spans, 0, 10) == 0.5
    assert best_overlap([], 0, 10) == 0.0


def test_recall_counts_overlaps_of_exactly_the_bound_and_sentences_without_a_span():
    numbers = moment_numbers([1.0, 0.7, 0.5, 0.3, 0.0])
    assert numbers == {
        "moment/queries": 5.0,
        "moment/R1_0.3": 80.0,
        "moment/R1_0.5": 60.0,
        "moment/R1_0.7": 40.0,
        "moment/mIoU": pytest.approx(50.0),
    }
    assert moment_numbers([]) == {}
