"""95% intervals of a recall by the bootstrap: videos are drawn anew, with all their captions."""

import numpy as np
from torch import Tensor

NUM_DRAWS = 1000


def interval(hits: Tensor, video: Tensor, seed: int, num_draws: int = NUM_DRAWS) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles, in percent, of the mean of `hits` Float64[Q] over draws of videos.

    `video` Int64[Q] is each query's video: captions of one video succeed and fail together, so they are drawn
    together; taken as independent, MSVD's 41 captions per video would give an interval several times too
    narrow.
    """
    num_queries = np.bincount(video.numpy())
    num_hits = np.bincount(video.numpy(), weights=hits.numpy())
    draw = np.random.default_rng(seed).integers
    means = np.empty(num_draws)
    for number in range(num_draws):
        drawn = draw(len(num_queries), size=len(num_queries))
        means[number] = num_hits[drawn].sum() / num_queries[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return 100 * float(low), 100 * float(high)
