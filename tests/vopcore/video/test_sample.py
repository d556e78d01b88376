"""Samplers against what the field's own loaders do, written out slowly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vopcore.video.sample import SAMPLERS, choose, clip4clip_1fps, head, segment, uniform

counts = st.integers(1, 70)
num_frames = st.integers(1, 5000)
rates = st.floats(0.3, 120)


@given(st.sampled_from(sorted(SAMPLERS)), num_frames, rates, counts)
def test_every_sampler_gives_ascending_frames_of_the_video_none_twice(name, n, fps, count):
    ordinals = SAMPLERS[name](n, fps, count)
    assert ordinals == sorted(set(ordinals))
    assert 1 <= len(ordinals) <= min(count, n)
    assert ordinals[0] >= 0
    assert ordinals[-1] < n


@given(num_frames, counts)
def test_uniform_is_the_middle_of_equal_intervals_as_in_x_pool(n, count):
    edges = np.linspace(start=0, stop=n, num=min(count, n) + 1).astype(int)
    middles = [(edges[i] + edges[i + 1] - 1) // 2 for i in range(len(edges) - 1)]
    assert uniform(n, 25, count) == middles


@given(num_frames, counts)
def test_segment_is_the_middle_of_equal_segments_as_in_tsn(n, count):
    tick = n / min(count, n)
    assert segment(n, 25, count) == [int(tick / 2 + tick * x) for x in range(min(count, n))]


def clip4clip_slowly(n, fps, count):
    """CLIP4Clip's loop over seconds, reading until the first frame that is not there."""
    total = (n + int(fps) - 1) // int(fps)
    read = []
    for second in range(total + 1):
        if second * int(fps) >= n:
            break
        read.append(second * int(fps))
    if len(read) <= count:
        return read
    return [read[i] for i in np.linspace(0, len(read) - 1, num=count, dtype=int)]


@given(num_frames, st.floats(1, 120), counts)
def test_clip4clip_1fps_is_clip4clips_loop(n, fps, count):
    assert clip4clip_1fps(n, fps, count) == clip4clip_slowly(n, fps, count)


def test_29_97_frames_a_second_give_11_candidates_in_10_seconds():
    assert clip4clip_1fps(300, 29.97, 64) == list(range(0, 300, 29))
    assert head(300, 29.97, 4) == [0, 29, 58, 87]


@given(st.integers(1, 200), counts, st.integers(0, 2**32 - 1))
def test_training_takes_one_stored_frame_of_each_segment(stored, frames, seed):
    chosen = choose(stored, frames, np.random.default_rng(seed))
    if stored <= frames:
        assert chosen == list(range(stored))
    else:
        edges = np.linspace(0, stored, frames + 1)
        assert all(low - 1 < index < high for index, low, high in zip(chosen, edges, edges[1:], strict=False))


def test_training_looks_differ_and_evaluation_looks_do_not():
    looks = {tuple(choose(36, 12, np.random.default_rng(seed))) for seed in range(20)}
    assert len(looks) > 15
    assert choose(36, 12, None) == list(range(1, 36, 3))


@pytest.mark.parametrize("n", [36, 100, 361, 1000, 4321])
def test_an_odd_multiple_of_stored_frames_holds_the_frames_of_evaluation(n):
    stored = uniform(n, 25, 36)
    evaluated = [stored[i] for i in choose(36, 12, None)]
    assert np.abs(np.array(evaluated) - uniform(n, 25, 12)).max() <= 1
