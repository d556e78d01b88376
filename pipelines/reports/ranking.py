"""Which method finds most on a data set, and which others cannot be told from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.reports.summary import MethodResult
from vopcore.metrics.verdict import Evidence, hits, judge, paired, unpaired

RECALL = "t2v/R1"
FALSE_ALARMS = 0.05  # over all methods of a data set: how often a tie may be called a loss
SEED_STD = 0.5  # points of R@1 between seeds, assumed where no method has two


@dataclass(frozen=True)
class Ranking:
    """The best method of a data set by R@1, and the labels of those that are tied with it."""

    best: MethodResult
    tied: frozenset[str]

    def mark(self, result: MethodResult) -> str:
        """`best`, `tied` or nothing."""
        if result.label == self.best.label:
            return "best"
        return "tied" if result.label in self.tied else ""


def rank(results: Sequence[MethodResult], predictions: Mapping[str, Sequence[pa.Table]]) -> Ranking:
    """Compare every method of one data set with the best, query by query where that is possible.

    predictions: for each label the PREDICTIONS of its runs, none where they are gone. Holm's correction over
    the methods, as in a benchmark's rounds.
    """
    best = max(results, key=_recall)
    others = [result for result in results if result is not best]
    evidence = [_evidence(best, other, predictions) for other in others]
    changes = judge(evidence, FALSE_ALARMS, SEED_STD)

    tied = frozenset(
        other.label for other, change in zip(others, changes, strict=True) if change.word != "worse"
    )
    return Ranking(best, tied)


def _recall(result: MethodResult) -> float:
    value = result.value(RECALL)
    assert value is not None, "a row without recall"
    return value


def _evidence(
    best: MethodResult, other: MethodResult, predictions: Mapping[str, Sequence[pa.Table]]
) -> Evidence:
    """What speaks for `other` being worse than `best`."""
    best_tables = predictions.get(best.label, ())
    other_tables = predictions.get(other.label, ())
    if best_tables and other_tables and _same_queries([*best_tables, *other_tables]):
        return _by_query(best_tables, other_tables)

    reaches = [reach for result in (best, other) for reach in _reaches(result)]
    return unpaired([_recall(best)], [_recall(other)], reaches)


def _same_queries(tables: Sequence[pa.Table]) -> bool:
    queries = [table.select(["caption", "video"]) for table in tables]
    return all(other.equals(queries[0]) for other in queries)


def _by_query(best: Sequence[pa.Table], other: Sequence[pa.Table]) -> Evidence:
    """Seeds have no partner in another method: each side is taken as the mean over its seeds."""
    best_hits = np.mean([hits(table["rank"].to_numpy()) for table in best], axis=0)
    other_hits = np.mean([hits(table["rank"].to_numpy()) for table in other], axis=0)
    _, video = np.unique(best[0]["video"].to_pylist(), return_inverse=True)
    return paired([best_hits], [other_hits], video)


def _reaches(result: MethodResult) -> list[float]:
    """Half the 95% interval over queries of each run."""
    low, high = f"{RECALL}_low", f"{RECALL}_high"
    measured = [run.metrics for run in result.runs if low in run.metrics and high in run.metrics]
    return [(metrics[high] - metrics[low]) / 2 for metrics in measured]
