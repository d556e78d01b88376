"""The packet plan against brute force over streams small enough to list."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vopcore.video.plan import Packets, Run, runs, span


def stream(packets):
    """Packets from (pts, is_key) or (pts, is_key, is_shown) in decoding order."""
    made = Packets()
    for pts, is_key, *shown in packets:
        made.add(pts, is_key, *(shown or [True]))
    return made


def test_packets_are_shown_by_time_without_those_an_edit_list_cuts():
    packets = stream([(0, True, False), (3, False), (1, False, False), (2, False), (4, True)])
    assert packets.shown_in_order().tolist() == [3, 1, 4]


@pytest.mark.parametrize("pts", [[0, None, 2], [0, 1, 1], []])
def test_packets_without_times_of_their_own_cannot_be_planned_on(pts):
    assert not stream([(p, True) for p in pts]).are_timed()


def test_a_picture_shown_before_its_key_picture_needs_the_group_before():
    open_group = stream([(0, True), (3, False), (1, False), (6, True), (4, False), (5, False), (7, False)])
    assert runs(open_group, [4]) == [Run(0, 4)]
    assert runs(open_group, [6]) == [Run(3, 6)]


def test_runs_that_touch_are_one_and_a_stream_without_key_pictures_starts_at_its_start():
    packets = stream([(i, i in (0, 4, 8)) for i in range(12)])
    assert runs(packets, [2, 3, 6, 11]) == [Run(0, 6), Run(8, 11)]
    assert runs(stream([(i, False) for i in range(5)]), [3]) == [Run(0, 3)]


@given(st.data())
def test_runs_cover_exactly_what_the_targets_need(data):
    length = data.draw(st.integers(1, 40))
    pts = data.draw(st.permutations(range(length)))
    keys = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    targets = data.draw(st.sets(st.integers(0, length - 1), min_size=1))
    found = runs(stream(zip(pts, keys, strict=True)), sorted(targets))

    def start(target):
        before = [i for i in range(target + 1) if keys[i] and pts[i] <= pts[target]]
        return max(before, default=0)

    needed = {i for target in targets for i in range(start(target), target + 1)}
    assert {i for run in found for i in range(run.first, run.last + 1)} == needed
    assert all(a.last + 1 < b.first for a, b in itertools.pairwise(found))


def test_a_clip_holds_the_frames_from_its_start_up_to_but_not_at_its_end():
    times = np.arange(100) / 25
    assert span(times, None, None) == (0, 100)
    assert span(times, 1.0, 2.0) == (25, 50)
    assert span(times, 3.5, 99.0) == (88, 100)
    assert span(times, 1.01, 1.02) == (25, 26), "between two frames: the one on screen"
    assert span(times, 3.97, None) == (99, 100), "the last frame is on screen until 4 s"
    with pytest.raises(ValueError, match=r"starts at 5 s, but the video ends at 4.00 s"):
        span(times, 5.0, 6.0)
