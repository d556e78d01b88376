"""The verdict on simulated reruns: noise is not flagged more often than promised, a real drop is found."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vopcore.metrics.verdict import Evidence, hits, holm, judge, paired, unpaired

ROWS, QUERIES = 8, 200


def rerun(rng, num_seeds: int, luck: float, drop: float = 0.0, captions: int = 1) -> Evidence:
    """A row whose runs find a query by how easy its video and itself are, the seed's luck, and chance."""
    videos = QUERIES // captions
    easy = 1.6 * rng.normal(size=videos).repeat(captions) + rng.normal(size=QUERIES) - 0.5

    def run(shift: float) -> np.ndarray:
        return (easy + luck * rng.normal() + rng.normal(size=QUERIES) + shift > 0).astype(float)

    old, new = ([run(shift) for _ in range(num_seeds)] for shift in (0.0, -drop))
    return paired(old, new, np.arange(videos).repeat(captions))


@pytest.mark.parametrize(("num_seeds", "luck"), [(1, 0.0), (2, 0.0), (2, 0.3), (3, 0.1), (3, 0.3), (5, 0.3)])
@pytest.mark.parametrize("captions", [1, 5])
def test_a_benchmark_that_only_saw_noise_is_flagged_no_more_often_than_promised(num_seeds, luck, captions):
    """`luck` 0.3 moves a seed's R@1 by 5 points, as much as the quickstart's seeds differ."""
    rng, benchmarks, promised = np.random.default_rng(0), 150, 0.05
    flagged = 0
    for _ in range(benchmarks):
        rows = [rerun(rng, num_seeds, luck, captions=captions) for _ in range(ROWS)]
        flagged += any(change.word == "worse" for change in judge(rows, promised, seed_std=0.5))
    assert binomtest(flagged, benchmarks, promised, alternative="greater").pvalue > 0.01


def test_rows_of_different_luck_are_not_flagged_more_often_than_promised():
    rng, flagged = np.random.default_rng(0), 0
    for _ in range(150):
        rows = [rerun(rng, 2, (0.0, 0.1, 0.3)[row % 3]) for row in range(ROWS)]
        flagged += any(change.word == "worse" for change in judge(rows, 0.05, seed_std=0.5))
    assert binomtest(flagged, 150, 0.05, alternative="greater").pvalue > 0.01


def test_one_row_that_really_lost_is_found_among_others_that_did_not():
    rng, found = np.random.default_rng(0), 0
    for _ in range(50):
        rows = [rerun(rng, 3, 0.1, drop=1.0 * (row == 0)) for row in range(ROWS)]  # 18 points of R@1
        found += judge(rows, 0.05, seed_std=0.5)[0].word == "worse"
    assert found >= 45


def test_the_variance_over_queries_is_that_of_a_bootstrap_over_videos():
    rng = np.random.default_rng(0)
    video = np.repeat(np.arange(60), rng.integers(1, 6, 60))
    old, new = (rng.random((3, len(video))) < 0.4 for _ in range(2))
    change = (100.0 * (new.astype(float) - old)).mean(axis=0)
    means = []
    for _ in range(4000):
        drawn = rng.integers(0, 60, 60)
        rows = np.concatenate([np.flatnonzero(video == one) for one in drawn])
        means.append(change[rows].mean())
    found = paired(list(old), list(new), video)
    won_and_lost = 2 * 100**2 * 60 / 59 / len(video) ** 2
    assert found.queries - won_and_lost == pytest.approx(np.var(means), rel=0.1)
    assert found.freedom == 59


def test_with_many_seeds_and_no_doubt_about_queries_it_is_students_paired_t():
    from scipy.stats import ttest_1samp

    by_seed = [-1.0, -0.2, 0.3, -1.4, -0.9]
    (change,) = judge([Evidence(by_seed, 0.0)], 0.05, seed_std=0.5)
    expected = ttest_1samp(by_seed, 0.0).confidence_interval(0.95)
    assert (change.low, change.high) == pytest.approx((expected.low, expected.high))


def test_a_handful_of_changed_queries_is_no_more_certain_than_the_sign_test_says():
    video = np.arange(1000)
    for lost, certain in ((5, False), (12, True)):
        old, new = np.ones(1000), np.ones(1000)
        new[:lost] = 0
        (change,) = judge([paired([old], [new], video)], false_alarms=0.005, seed_std=0.0)
        assert (change.word == "worse") == certain == (binomtest(lost, lost).pvalue / 2 < 0.005)


def test_the_same_predictions_are_identical_and_take_nothing_from_the_others():
    same = np.ones(50)
    rows = [paired([same], [same], np.arange(50)), Evidence([-20.0, -21.0], 1.0)]
    first, second = judge(rows, 0.01, seed_std=0.5)
    assert (first.word, first.change, first.low, first.high) == ("identical", 0.0, 0.0, 0.0)
    assert second.word == "worse"


def test_where_no_row_has_two_seeds_the_assumed_spread_of_seeds_counts():
    row = Evidence([-3.0], 0.25)
    assert judge([row], 0.01, seed_std=0.1)[0].word == "worse"
    assert judge([row], 0.01, seed_std=2.0)[0].word == "no change"


def test_a_gain_is_called_better():
    assert judge([Evidence([5.0, 5.5, 4.5], 0.5)], 0.01, seed_std=0.5)[0].word == "better"


def test_without_predictions_the_runs_own_intervals_over_queries_count():
    found = unpaired([30.0, 31.0], [29.0, 31.0], [2 * 1.96] * 4)
    assert found.by_seed == [-1.0, 0.0]
    assert found.queries == pytest.approx(2 * 2.0**2)  # of a difference of two independent runs
    assert math.isinf(found.freedom)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_at_least_what_bonferroni_does_and_no_more_than_no_correction(chances):
    rejected = holm(chances, 0.05)
    for chance, is_rejected in zip(chances, rejected, strict=True):
        assert is_rejected or chance > 0.05 / len(chances)
        assert not is_rejected or chance <= 0.05


def test_holm_on_its_papers_kind_of_example():
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]


def test_hits_by_rank_share_a_tie_of_two():
    assert hits(np.array([1.0, 1.5, 2.0, 7.0])).tolist() == [1.0, 0.5, 0.0, 0.0]
