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
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

TWO_SIDED_95 = 1.96  # standard deviations of half a 95% interval
HIT_VARIANCE = 100**2  # of one video that is won or lost, in squared points of R@1


@dataclass(frozen=True)
class Evidence:
    """by_seed: each seed's change, in points of R@1. queries: the variance that queries leave open."""

    by_seed: Sequence[float]
    queries: float
    freedom: float = math.inf  # degrees of freedom of `queries`

    @property
    def has_changed(self) -> bool:
        """Whether anything at all differs between the runs."""
        return any(self.by_seed) or self.queries > 0


@dataclass(frozen=True)
class Change:
    """What a row finds now less what it found, in points of R@1. low, high: 95% interval."""

    change: float
    low: float
    high: float
    word: str  # worse, better, no change (that could not be noise), identical


class SeedVariance(NamedTuple):
    """How far one seed's change is from another's: a variance, and its degrees of freedom."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class Estimate:
    """A row's change and its 95% interval, in points of R@1.

    chance_below, chance_above: the chances of so low and of so high a change if nothing has changed.
    """

    change: float
    low: float
    high: float
    chance_below: float
    chance_above: float


def paired(
    old: Sequence[np.ndarray],
    new: Sequence[np.ndarray],
    video: np.ndarray,
) -> Evidence:
    """From the hits of both runs on the same queries, Float[Q] in 0..1 for each seed.

    video: Int[Q], the number of each query's video.
    """
    differences = 100 * (np.stack(new).astype(float) - np.stack(old))  # [S, Q]
    by_seed = differences.mean(axis=1).tolist()
    if not differences.any():
        return Evidence(by_seed, 0.0)

    # how far each video's queries, added up, are from what the mean change would give them
    num_queries_of_video = np.bincount(video)
    per_query = differences.mean(axis=0)
    change_of_video = np.bincount(video, weights=per_query)
    deviations = change_of_video - per_query.mean() * num_queries_of_video

    # one video more won and one more lost, after Agresti and Min
    squares = deviations @ deviations + 2 * HIT_VARIANCE

    num_videos = len(num_queries_of_video)
    num_queries = len(video)
    freedom = max(1, num_videos - 1)
    variance = float(squares * num_videos / freedom / num_queries**2)
    return Evidence(by_seed, variance, freedom)


def unpaired(
    old: Sequence[float],
    new: Sequence[float],
    reaches: Sequence[float],
) -> Evidence:
    """From each seed's R@1, where predictions are gone.

    reaches: half the 95% interval over queries of every run, old and new.
    """
    by_seed = [after - before for before, after in zip(old, new, strict=True)]
    if not reaches:
        return Evidence(by_seed, 0.0)

    # the variances of both runs add up
    variances = [(reach / TWO_SIDED_95) ** 2 for reach in reaches]
    return Evidence(by_seed, 2 * statistics.mean(variances))


def judge(
    rows: Sequence[Evidence],
    false_alarms: float,
    seed_std: float,
) -> list[Change]:
    """What has changed in each row of a benchmark."""
    common = common_variance(rows, seed_std)
    estimates = [estimate_of(row, common) for row in rows]
    is_worse = holm([estimate.chance_below for estimate in estimates], false_alarms)
    is_better = holm([estimate.chance_above for estimate in estimates], false_alarms)

    changes = []
    for number, estimate in enumerate(estimates):
        if is_worse[number]:
            word = "worse"
        elif is_better[number]:
            word = "better"
        elif rows[number].has_changed:
            word = "no change"
        else:
            word = "identical"
        changes.append(Change(estimate.change, estimate.low, estimate.high, word))
    return changes


def common_variance(rows: Sequence[Evidence], seed_std: float) -> SeedVariance:
    """The mean over all rows that have several seeds; without any, that of `seed_std`."""
    several_seeds = [row for row in rows if len(row.by_seed) > 1 and row.has_changed]
    if not several_seeds:
        # a change is the difference of two runs, whose variances add up
        return SeedVariance(2 * seed_std**2, math.inf)

    variances = [statistics.variance(row.by_seed) for row in several_seeds]
    freedom = sum(len(row.by_seed) - 1 for row in several_seeds)
    return SeedVariance(statistics.mean(variances), freedom)


def estimate_of(row: Evidence, common: SeedVariance) -> Estimate:
    """A row's change by Student's t, with the variances of queries and of seeds added up."""
    if not row.has_changed:
        return Estimate(
            0.0,
            0.0,
            0.0,
            chance_below=1.0,
            chance_above=1.0,
        )

    # a row's variance of two or three seeds is often small by chance: the common one is the least
    num_seeds = len(row.by_seed)
    seed_variance = common.variance
    if num_seeds > 1:
        seed_variance = max(statistics.variance(row.by_seed), common.variance)
    seeds = seed_variance / num_seeds

    change = statistics.mean(row.by_seed)
    deviation = math.sqrt(row.queries + seeds)
    if deviation == 0:
        # all seeds moved by the same, and nothing says how far that may be off
        is_not_below = float(change >= 0)
        is_not_above = float(change <= 0)
        return Estimate(
            change,
            change,
            change,
            chance_below=is_not_below,
            chance_above=is_not_above,
        )

    # Welch and Satterthwaite's degrees of freedom
    doubt = row.queries**2 / row.freedom + seeds**2 / common.freedom
    freedom = math.inf
    if doubt:
        freedom = deviation**4 / doubt

    reach = float(student.ppf(0.975, freedom)) * deviation
    chance_below = float(student.cdf(change / deviation, freedom))
    return Estimate(
        change,
        change - reach,
        change + reach,
        chance_below=chance_below,
        chance_above=1 - chance_below,
    )


def holm(chances: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected; with a chance of `level` at most, a true one is among them."""
    num_hypotheses = len(chances)
    least_likely_first = sorted(
        range(num_hypotheses),
        key=lambda number: chances[number],
    )

    rejected = [False] * num_hypotheses
    for num_rejected, number in enumerate(least_likely_first):
        num_left = num_hypotheses - num_rejected
        if chances[number] > level / num_left:
            break
        rejected[number] = True
    return rejected


def hits(rank: np.ndarray) -> np.ndarray:
    """A query's share of R@1 by its rank in PREDICTIONS: alone on top 1, tied with one other (1.5) a half.

    Ties of three and more, which ranks cannot tell from misses, count as misses.
    """
    is_alone = rank == 1
    is_tied = rank == 1.5
    return np.select([is_alone, is_tied], [1.0, 0.5], 0.0)
