"""Windows cover a video, neighbours become one answer, ends come from frames."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vopcore.index.moments import ScoredWindow, Span, WindowRule, merge_windows, refine, run_around


def scored(*rows: tuple[float, float, float]) -> list[ScoredWindow]:
    return [ScoredWindow(row=i, start=start, end=end, score=s) for i, (start, end, s) in enumerate(rows)]


def spans(groups: list[list[ScoredWindow]]) -> list[tuple[float, float]]:
    return [(group[0].start, group[-1].end) for group in groups]


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (0.04, [(0, 0.04)]),
        (12, [(0, 12)]),
        (12.5, [(0, 8), (4, 12), (8, 12.5)]),
        (16, [(0, 8), (4, 12), (8, 16)]),
        (17, [(0, 8), (4, 12), (8, 16), (12, 17)]),
    ],
)
def test_the_windows_of_a_video(duration, expected):
    assert WindowRule(8, 4).windows(duration) == expected


@settings(deadline=None)
@given(duration=st.floats(0.01, 500), seconds=st.floats(0.5, 60), share=st.floats(0.1, 1))
def test_windows_cover_the_video_in_order_and_none_is_longer_than_asked(duration, seconds, share):
    windows = WindowRule(seconds, seconds * share).windows(duration)
    assert windows[0].start == 0
    assert windows[-1].end == duration
    for earlier, later in itertools.pairwise(windows):
        assert earlier.start < later.start <= earlier.end + 1e-5
    for window in windows:
        assert window.end - window.start > 0
        assert len(windows) == 1 or window.end - window.start <= seconds + 1e-5


@pytest.mark.parametrize(("seconds", "every"), [(8, 0), (8, 9), (0, 0), (float("inf"), 4), (8, float("nan"))])
def test_windows_that_would_leave_gaps_are_refused(seconds, every):
    with pytest.raises(ValueError, match="0 < every <= seconds"):
        WindowRule(seconds, every)


def test_neighbours_that_match_are_one_answer_and_a_gap_ends_it():
    windows = scored((0, 8, 0.1), (4, 12, 0.30), (8, 16, 0.28), (12, 20, 0.1), (40, 48, 0.27))
    groups = merge_windows(windows, base=0.1)
    assert spans(groups) == [(4, 16), (40, 48), (0, 8), (12, 20)]
    assert [max(window.score for window in group) for group in groups] == [0.30, 0.27, 0.1, 0.1]


def test_a_window_is_in_one_answer_only():
    windows = scored(*[(4 * i, 4 * i + 8, score) for i, score in enumerate([3, 2, 9, 8, 7, 1, 5, 6])])
    rows = [window.row for group in merge_windows(windows, 0) for window in group]
    assert sorted(rows) == list(range(8))


def test_scores_below_the_mean_of_the_video_merge_with_nothing_worse():
    assert spans(merge_windows(scored((0, 8, -0.3), (4, 12, -0.4)), base=0.0)) == [(0, 8), (4, 12)]


def test_a_window_half_in_the_scene_is_not_part_of_the_answer_and_one_mostly_in_it_is():
    windows = scored((0, 8, 0.2), (4, 12, 0.6), (8, 16, 1.0), (12, 20, 0.9), (16, 24, 0.6))
    assert spans(merge_windows(windows, base=0.2))[0] == (8, 20)


def test_ends_are_where_frames_stop_matching():
    times = np.arange(0, 10, dtype=np.float32)
    scores = np.array([0, 0, 0, 0.9, 1.0, 0.8, 0, 0, 0, 0], np.float32)
    span, best = refine(times, scores, 0.1, found=Span(2, 7), bounds=Span(0, 10))
    assert span == (2.5, 5.5)
    assert best == 4


def test_a_scene_much_shorter_than_its_window_is_told_from_others_that_match_a_little():
    times = np.arange(0.25, 8, 0.5)
    scores = np.where((times > 3) & (times < 5), 1.0, 0.3)
    span, best = refine(times, scores, 0.0, found=Span(0, 8), bounds=Span(0, 8))
    assert span == (3, 5)
    assert 3 < best < 5


def test_one_frame_that_matches_by_chance_cuts_no_scene_short():
    times = np.arange(0.25, 8, 0.5)
    scores = np.where(times == 4.25, 1.0, 0.4)
    assert refine(times, scores, 0.0, found=Span(0, 8), bounds=Span(0, 8))[0] == (0, 8)


def test_frames_beyond_the_windows_have_to_match_nearly_as_well_as_those_in_them():
    times = np.arange(0, 10, dtype=np.float32)
    scores = np.array([0, 0.6, 0.6, 0.9, 1.0, 0.8, 0.95, 0.9, 0, 0], np.float32)
    span, _ = refine(times, scores, 0.0, found=Span(3, 5), bounds=Span(0, 10))
    assert span == (2.5, 7.5)


def test_an_answer_holds_its_best_frame_whatever_else_matches_nearby():
    times = np.arange(0, 10, dtype=np.float32)
    scores = np.array([1, 1, 0, 0, 0, 0, 0.5, 0.6, 0.5, 0], np.float32)
    span, best = refine(times, scores, 0.1, found=Span(6, 8), bounds=Span(0, 10))
    assert span == (5.5, 8.5)
    assert best == 7


def test_a_frame_that_several_windows_saw_counts_with_its_mean_score():
    times = np.array([2, 0, 1, 1, 2, 3], np.float32)
    scores = np.array([0.2, 0.1, 0.8, 1.0, 0.0, 0.1], np.float32)
    span, best = refine(times, scores, 0.1, found=Span(0, 3), bounds=Span(0, 4))
    assert span == (0.5, 1.5)
    assert best == 1


def test_without_a_frame_the_windows_stay():
    assert refine(np.zeros(0), np.zeros(0), 0, Span(2, 4), Span(0, 6)) == ((2, 4), 3)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.integers(0, 11))
def test_the_run_around_a_place_is_the_largest_of_all_runs_that_hold_it(gains, place):
    place %= len(gains)
    first, last = run_around(np.array(gains), place)
    assert first <= place <= last
    sums = [sum(gains[i : j + 1]) for i in range(place + 1) for j in range(place, len(gains))]
    assert sum(gains[first : last + 1]) == pytest.approx(max(sums), abs=1e-9)
