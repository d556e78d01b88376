"""Did a rerun find less than the run before, or is it noise: paired over queries and over seeds.

A cell's change d is the mean, over its seeds and queries, of what the new run has of R@1 less what the old
one had. Its variance is the sum of two parts:

- queries: that of the mean change per video (captions of one video stand together), as a bootstrap over
  videos gives it with many draws. As after Agresti and Min (2005), one video more won and one more lost are
  counted in, so that a handful of changed queries does not look certain.
- seeds: that of the seeds' own changes. It counts a part of the first again, so the sum is on the safe side.
  With a single seed there is none, and the verdict is about these two trained models.

d over its deviation is held against Student's t with Welch and Satterthwaite's degrees of freedom. Over all
cells of a benchmark, Holm's correction keeps the chance of calling any of them worse, when none is, below
`false_alarms`; the same, apart from it, for better.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student

Word = Literal["worse", "better", "no change", "identical"]


@dataclass(frozen=True)
class Change:
    """What a cell finds now less what it found, in points of R@1. low, high: 95% interval."""

    change: float
    low: float
    high: float
    deviation: float
    p_worse: float  # the chance of so much less, or less still, if nothing has changed
    p_better: float


def paired(old: Sequence[np.ndarray], new: Sequence[np.ndarray], video: np.ndarray) -> Change:
    """Compare the hits, Float[Q] in 0..1 for each seed, of two runs on the same queries.

    video: Int[Q], the number of each query's video.
    """
    differences = np.stack(new).astype(float) - np.stack(old)  # [S, Q]
    per_query = differences.mean(axis=0)
    num_queries = np.bincount(video)
    sums = np.bincount(video, weights=per_query) - per_query.mean() * num_queries
    num_videos = len(num_queries)
    spread = ((sums**2).sum() + 2 * bool(differences.any())) * num_videos / max(1, num_videos - 1)
    return _judge(list(100 * differences.mean(axis=1)), 100 * math.sqrt(spread) / len(video), num_videos - 1)


def unpaired(old: Sequence[float], new: Sequence[float], reaches: Sequence[float]) -> Change:
    """The same from each seed's R@1 where predictions are gone; reaches: half the 95% intervals over queries
    of all runs, old and new.
    """
    per_run = [reach / 1.96 for reach in reaches]
    spread = math.sqrt(2 * statistics.mean(s**2 for s in per_run)) if per_run else 0.0
    return _judge([n - o for o, n in zip(old, new, strict=True)], spread, math.inf)


def _judge(by_seed: Sequence[float], spread_of_queries: float, freedom_of_queries: float) -> Change:
    change, num_seeds = statistics.mean(by_seed), len(by_seed)
    queries = spread_of_queries**2
    seeds = statistics.variance(by_seed) / num_seeds if num_seeds > 1 else 0.0
    deviation = math.sqrt(queries + seeds)
    if deviation == 0:
        none = float(change != 0)  # every seed moved by the same, and nothing says how far that may be off
        return Change(change, change, change, 0.0, 1 - none * (change < 0), 1 - none * (change > 0))
    doubt = queries**2 / freedom_of_queries + (seeds**2 / (num_seeds - 1) if num_seeds > 1 else 0)
    freedom = deviation**4 / doubt if doubt else math.inf
    half = float(student.ppf(0.975, freedom)) * deviation
    below = float(student.cdf(change / deviation, freedom))
    return Change(change, change - half, change + half, deviation, below, 1 - below)


def verdicts(changes: Sequence[Change], false_alarms: float) -> list[Word]:
    """One word for each cell of a benchmark."""
    worse = holm([change.p_worse for change in changes], false_alarms)
    better = holm([change.p_better for change in changes], false_alarms)
    return [
        "worse" if is_worse else "better" if is_better else "no change" if c.deviation else "identical"
        for c, is_worse, is_better in zip(changes, worse, better, strict=True)
    ]


def holm(chances: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses Holm (1979) rejects, so that with `level` at most any true one is among them."""
    rejected = [False] * len(chances)
    for left, number in zip(
        range(len(chances), 0, -1), sorted(range(len(chances)), key=chances.__getitem__), strict=True
    ):
        if chances[number] > level / left:
            break
        rejected[number] = True
    return rejected


def hits(rank: np.ndarray) -> np.ndarray:
    """A query's share of R@1 by its rank in PREDICTIONS: alone on top 1, tied with one other (1.5) a half.

    Ties of three and more, which ranks cannot tell from misses, count as misses.
    """
    return np.select([rank == 1, rank == 1.5], [1.0, 0.5], 0.0)
