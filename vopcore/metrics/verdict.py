"""Did a rerun find less than the run before, or is it noise: paired over queries and over seeds.

The change of a row (one method, one data set) is the mean, over its seeds and queries, of what the new runs
have of R@1 less what the old ones had. Two things may be noise in it, and their variances add up:

- queries: others might have been asked. The variance of the mean change per video (a video's captions stand
  together), which is what a bootstrap over videos gives with many draws. As after Agresti and Min (2005) one
  video more won and one more lost are counted in, so that a handful of changed queries does not look certain.
- seeds: others might have been drawn. The variance between the seeds' changes; of two or three seeds it is
  often small by chance, so a row's own counts only where it is above the mean of all rows'. Where no row has
  two seeds, `seed_std` is assumed.

The seeds' changes hold a part of the first as well, so the sum is on the safe side. The change over its
deviation is held against Student's t with Welch and Satterthwaite's degrees of freedom. Over all rows, Holm's
correction (1979) keeps the chance to call any row worse, when none is, below `false_alarms`; and the same for
better.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student


@dataclass(frozen=True)
class Evidence:
    """by_seed: each seed's change, in points of R@1. queries: the variance that queries leave open."""

    by_seed: Sequence[float]
    queries: float
    freedom: float = math.inf  # degrees of freedom of `queries`

    @property
    def changed(self) -> bool:
        return any(self.by_seed) or self.queries > 0


@dataclass(frozen=True)
class Change:
    """What a row finds now less what it found, in points of R@1. low, high: 95% interval."""

    change: float
    low: float
    high: float
    word: str  # worse, better, no change (that could not be noise), identical


def paired(old: Sequence[np.ndarray], new: Sequence[np.ndarray], video: np.ndarray) -> Evidence:
    """From the hits of both runs on the same queries, Float[Q] in 0..1 for each seed.

    video: Int[Q], the number of each query's video.
    """
    differences = 100 * (np.stack(new).astype(float) - np.stack(old))  # [S, Q]
    by_seed = differences.mean(axis=1).tolist()
    if not differences.any():
        return Evidence(by_seed, 0.0)
    per_query, num_queries = differences.mean(axis=0), np.bincount(video)
    off = np.bincount(video, weights=per_query) - per_query.mean() * num_queries  # of each video, summed
    won_and_lost = 2 * 100**2
    freedom = max(1, len(num_queries) - 1)
    return Evidence(
        by_seed,
        float((off @ off + won_and_lost) * len(num_queries) / freedom / len(video) ** 2),
        freedom,
    )


def unpaired(old: Sequence[float], new: Sequence[float], reaches: Sequence[float]) -> Evidence:
    """From each seed's R@1, where predictions are gone.

    reaches: half the 95% interval over queries of every run, old and new.
    """
    queries = 2 * statistics.mean((reach / 1.96) ** 2 for reach in reaches) if reaches else 0.0
    return Evidence([after - before for before, after in zip(old, new, strict=True)], queries)


def judge(rows: Sequence[Evidence], false_alarms: float, seed_std: float) -> list[Change]:
    """What has changed in each row of a benchmark."""
    several = [row for row in rows if len(row.by_seed) > 1 and row.changed]
    if several:
        common = statistics.mean(statistics.variance(row.by_seed) for row in several)
        freedom = sum(len(row.by_seed) - 1 for row in several)
    else:
        common, freedom = 2 * seed_std**2, math.inf  # of the difference of two runs
    found = [_change(row, common, freedom) for row in rows]
    worse = holm([below for _, below, _ in found], false_alarms)
    better = holm([above for _, _, above in found], false_alarms)
    words = [
        "worse" if is_worse else "better" if is_better else "no change" if row.changed else "identical"
        for row, is_worse, is_better in zip(rows, worse, better, strict=True)
    ]
    return [Change(*numbers, word) for (numbers, _, _), word in zip(found, words, strict=True)]


def _change(row: Evidence, common: float, freedom: float) -> tuple[tuple[float, float, float], float, float]:
    """(change, low, high), and the chances of so little, and of so much, if nothing has changed."""
    change, num_seeds = statistics.mean(row.by_seed), len(row.by_seed)
    if not row.changed:
        return (0.0, 0.0, 0.0), 1.0, 1.0
    own = statistics.variance(row.by_seed) if num_seeds > 1 else 0.0
    seeds = max(own, common) / num_seeds
    deviation = math.sqrt(row.queries + seeds)
    if not deviation:  # all seeds moved by the same, and nothing says how far that may be off
        return (change, change, change), float(change >= 0), float(change <= 0)
    doubt = row.queries**2 / row.freedom + seeds**2 / freedom
    degrees = deviation**4 / doubt if doubt else math.inf
    half = float(student.ppf(0.975, degrees)) * deviation
    below = float(student.cdf(change / deviation, degrees))
    return (change, change - half, change + half), below, 1 - below


def holm(chances: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected, so that with a chance of `level` at most a true one is among them."""
    rejected = [False] * len(chances)
    for num_left, number in zip(
        range(len(chances), 0, -1), sorted(range(len(chances)), key=chances.__getitem__), strict=True
    ):
        if chances[number] > level / num_left:
            break
        rejected[number] = True
    return rejected


def hits(rank: np.ndarray) -> np.ndarray:
    """A query's share of R@1 by its rank in PREDICTIONS: alone on top 1, tied with one other (1.5) a half.

    Ties of three and more, which ranks cannot tell from misses, count as misses.
    """
    return np.select([rank == 1, rank == 1.5], [1.0, 0.5], 0.0)
