"""Which frames of a video: arithmetic on frame counts, no I/O.

A sampler takes the number of frames of a video (or moment), its frame rate and how many frames are wanted,
and gives their ordinals: ascending, in [0, num_frames), at most `count`, none twice. A video with fewer
frames gives what it has.
"""

from collections.abc import Callable

import numpy as np


def uniform(
    num_frames: int,
    fps: float,
    count: int,
) -> list[int]:
    """The middle frame of `count` equal intervals.

    As X-Pool and VoP sample (X-Pool, `sample_type: uniform`).
    """
    num_intervals = min(count, num_frames)
    edges = np.linspace(0, num_frames, num_intervals + 1).astype(int)

    firsts = edges[:-1]
    lasts = edges[1:] - 1
    middles = (firsts + lasts) // 2
    return middles.tolist()


def segment(
    num_frames: int,
    fps: float,
    count: int,
) -> list[int]:
    """The middle moment of `count` equal segments, as TSN and DGL sample when testing."""
    num_segments = min(count, num_frames)

    # A video without frames has no segments.
    length = num_frames / max(num_segments, 1)
    middle = length / 2

    ordinals = []
    for index in range(num_segments):
        ordinal = int(middle + length * index)
        ordinals.append(ordinal)
    return ordinals


def clip4clip_1fps(
    num_frames: int,
    fps: float,
    count: int,
) -> list[int]:
    """Every `int(fps)`-th frame, thinned by `linspace` when there are more than `count` (CLIP4Clip,
    `slice_framepos 2`).

    29.97 frames a second give every 29th frame, which drifts 3 % from one frame a second: kept, as it is
    what was published.
    """
    candidates = each_second(num_frames, fps)
    if len(candidates) <= count:
        return candidates

    last = len(candidates) - 1
    thinned = np.linspace(0, last, count, dtype=int)
    return [candidates[index] for index in thinned]


def head(
    num_frames: int,
    fps: float,
    count: int,
) -> list[int]:
    """The first `count` of every `int(fps)`-th frame (CLIP4Clip, `slice_framepos 0`)."""
    return each_second(num_frames, fps)[:count]


def each_second(num_frames: int, fps: float) -> list[int]:
    """Every `int(fps)`-th frame, the first included."""
    # Less than one frame a second: every frame.
    step = max(int(fps), 1)
    return list(range(0, num_frames, step))


SAMPLERS: dict[str, Callable[[int, float, int], list[int]]] = {
    "uniform": uniform,
    "segment": segment,
    "clip4clip_1fps": clip4clip_1fps,
    "head": head,
}


def choose(
    num_stored: int,
    frames: int,
    rng: np.random.Generator | None,
) -> list[int]:
    """Which of a video's stored frames one look at it uses.

    `frames` ascending indices, or all where fewer are stored.

    With `rng` (training) one random frame of each of `frames` equal segments, as TSN trains; without
    (evaluation) the middle of each. Where `num_stored` is an odd multiple of `frames` the middles are, up
    to rounding, the frames a sampler asked for `frames` would have stored.
    """
    if num_stored <= frames:
        return list(range(num_stored))
    if rng is None:
        return uniform(num_stored, 0.0, frames)

    edges = np.linspace(0, num_stored, frames + 1).astype(int)
    firsts = edges[:-1]
    stops = edges[1:]
    return rng.integers(firsts, stops).tolist()
