"""Which method finds most on a data set, and which others cannot be told from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.reports.summary import MethodResult
from vopcore.metrics import names
from vopcore.metrics.verdict import Evidence, hits, judge, paired, unpaired

# over all methods of a data set: how often a tie may be called a loss
FALSE_ALARMS = 0.05
SEED_STD = 0.5  # points of R@1 between seeds, assumed where no method has two

Tables = Sequence[pa.Table]  # PREDICTIONS of one method, a table for each seed

# by the method's label; no tables where they are gone
Predictions = Mapping[str, Tables]


@dataclass(frozen=True)
class Ranking:
    """The best method of a data set by R@1, and the labels of those that are tied with it."""

    best: MethodResult
    tied: frozenset[str]

    def mark(self, result: MethodResult) -> str:
        """`best`, `tied` or nothing."""
        if result.label == self.best.label:
            return "best"
        if result.label in self.tied:
            return "tied"
        return ""


def rank(results: Sequence[MethodResult], predictions: Predictions) -> Ranking:
    """Compare every method of one data set with the best, query by query where that is possible.

    Holm's correction is made over the methods, as in a benchmark's rounds.
    """
    best = max(results, key=_recall)
    others = [result for result in results if result is not best]

    evidence = [_evidence(best, other, predictions) for other in others]
    changes = judge(evidence, FALSE_ALARMS, SEED_STD)

    # What is not proven to find less may be as good.
    tied = set()
    for other, change in zip(others, changes, strict=True):
        if change.word != "worse":
            tied.add(other.label)
    return Ranking(best, frozenset(tied))


def _recall(result: MethodResult) -> float:
    value = result.value(names.T2V_R1)
    assert value is not None, "a row without recall"
    return value


def _evidence(
    best: MethodResult,
    other: MethodResult,
    predictions: Predictions,
) -> Evidence:
    """What speaks for `other` being worse than `best`."""
    best_tables = predictions.get(best.label, ())
    other_tables = predictions.get(other.label, ())

    # Paired evidence tells smaller differences apart, but needs the same queries in every run.
    if best_tables and other_tables:
        tables = [*best_tables, *other_tables]
        if _same_queries(tables):
            return _by_query(best_tables, other_tables)

    half_intervals = _half_intervals(best) + _half_intervals(other)
    best_recall = _recall(best)
    other_recall = _recall(other)
    return unpaired([best_recall], [other_recall], half_intervals)


def _same_queries(tables: Tables) -> bool:
    queries = [table.select(["caption", "video"]) for table in tables]
    first = queries[0]
    return all(other.equals(first) for other in queries)


def _by_query(best: Tables, other: Tables) -> Evidence:
    """Seeds have no partner in another method: each side is taken as the mean over its seeds."""
    best_hits = _mean_hits(best)
    other_hits = _mean_hits(other)

    # A video's captions are no independent queries; they are numbered to be kept together.
    videos = best[0]["video"].to_pylist()
    _, video_numbers = np.unique(videos, return_inverse=True)
    return paired([best_hits], [other_hits], video_numbers)


def _mean_hits(tables: Tables) -> np.ndarray:
    """Float[Q]: of each query, the share of seeds that rank its video first."""
    by_seed = []
    for table in tables:
        ranks = table["rank"].to_numpy()
        by_seed.append(hits(ranks))
    return np.mean(by_seed, axis=0)


def _half_intervals(result: MethodResult) -> list[float]:
    """Half the 95% interval over queries of each run that has one."""
    low_name = names.low(names.T2V_R1)
    high_name = names.high(names.T2V_R1)

    halves = []
    for run in result.runs:
        low = run.metrics.get(low_name)
        high = run.metrics.get(high_name)
        if low is not None and high is not None:
            halves.append((high - low) / 2)
    return halves
