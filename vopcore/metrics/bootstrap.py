"""95% intervals of a recall by the bootstrap: videos are drawn anew, with all their captions."""

import numpy as np
from torch import Tensor

NUM_DRAWS = 1000


def interval(
    hits: Tensor,
    video: Tensor,
    seed: int,
    num_draws: int = NUM_DRAWS,
) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles, in percent, of the mean of `hits` Float64[Q] over draws of videos.

    `video` Int64[Q] is each query's video. Captions of one video succeed and fail together, so they are drawn
    together; taken as independent, MSVD's 41 captions per video would give an interval several times too
    narrow.
    """
    videos = video.numpy()
    num_queries = np.bincount(videos)
    num_hits = np.bincount(videos, weights=hits.numpy())
    num_videos = len(num_queries)

    rng = np.random.default_rng(seed)
    means = np.empty(num_draws)
    for number in range(num_draws):
        drawn_videos = rng.integers(num_videos, size=num_videos)
        drawn_hits = num_hits[drawn_videos].sum()
        drawn_queries = num_queries[drawn_videos].sum()
        means[number] = drawn_hits / drawn_queries

    low, high = np.quantile(means, [0.025, 0.975])
    return 100 * float(low), 100 * float(high)
