"""A round against the ones before it, row by row: what was found then, what now, and is it noise."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.matrix.rounds import CellRecord, RoundRecord
from vopcore.metrics import names
from vopcore.metrics.verdict import Change, Evidence, hits, judge, paired, unpaired


@dataclass(frozen=True)
class RowChange:
    """One row of the matrix, the seeds that both rounds finished taken together.

    word: worse, better, no change, identical; or why nothing can be said: new, failed, other data.
    baseline: the round it was compared with; before, now: R@1 in percent.
    """

    row: str
    word: str
    baseline: str = ""
    seeds: int = 0
    before: float | None = None
    now: float | None = None
    change: Change | None = None


def compare_rounds(
    output: Path,
    now: RoundRecord,
    earlier: Sequence[RoundRecord],
    false_alarms: float,
    seed_std: float,
) -> list[RowChange]:
    """Each row against the latest round that has it; rows that are one run (in two tables) count once."""
    rows: dict[str, dict[int, CellRecord]] = {}
    for cell in now["cells"]:
        rows.setdefault(cell["row"], {})[cell["seed"]] = cell

    by_runs: dict[tuple[str, ...], tuple[RowChange, Evidence | None]] = {}
    for name, seeds in rows.items():
        runs = tuple(cell.get("key", name) for cell in seeds.values())
        if runs not in by_runs:
            by_runs[runs] = _row(output, name, seeds, earlier)

    # judged together: the more rows there are, the more evidence each needs
    evidence = [found for _, found in by_runs.values() if found]
    judged = iter(judge(evidence, false_alarms, seed_std))
    changes = []
    for row, found in by_runs.values():
        if found is None:
            changes.append(row)
            continue
        change = next(judged)
        changes.append(replace(row, word=change.word, change=change))
    return changes


def _row(
    output: Path,
    name: str,
    seeds: dict[int, CellRecord],
    earlier: Sequence[RoundRecord],
) -> tuple[RowChange, Evidence | None]:
    finished = {seed: cell for seed, cell in seeds.items() if "metrics" in cell}
    if not finished:
        return RowChange(name, "failed"), None

    for record in reversed(earlier):
        old = {}
        for cell in record["cells"]:
            if cell["row"] == name and "metrics" in cell:
                old[cell["seed"]] = cell

        both = sorted(old.keys() & finished.keys())
        if both:
            before = [old[seed] for seed in both]
            now = [finished[seed] for seed in both]
            return _compare(
                output,
                name,
                record["id"],
                before,
                now,
            )

    return RowChange(name, "new", seeds=len(finished), now=_recall(list(finished.values()))), None


def _compare(
    output: Path,
    name: str,
    baseline: str,
    before: Sequence[CellRecord],
    now: Sequence[CellRecord],
) -> tuple[RowChange, Evidence | None]:
    row = RowChange(
        name,
        "other data",
        baseline,
        len(before),
        _recall(before),
        _recall(now),
    )
    for old, new in zip(before, now, strict=True):
        if old["data_hash"] != new["data_hash"]:
            return row, None

    evidence = _by_query(output, before, now)
    if evidence is None:
        low_name = names.low(names.T2V_R1)
        with_interval = [cell for cell in (*before, *now) if low_name in cell["metrics"]]
        old_recalls = [_recall([cell]) for cell in before]
        new_recalls = [_recall([cell]) for cell in now]
        reaches = [_half_interval(cell) for cell in with_interval]
        evidence = unpaired(old_recalls, new_recalls, reaches)
    return row, evidence


def _by_query(
    output: Path,
    before: Sequence[CellRecord],
    now: Sequence[CellRecord],
) -> Evidence | None:
    """Where the predictions of all runs are still there, on the same queries."""
    files = [output / cell["predictions"] for cell in (*before, *now)]
    if not all(file.is_file() for file in files):
        return None

    tables = [pq.read_table(file, columns=["caption", "video", "rank"]) for file in files]
    queries = _queries(tables[0])
    if not all(_queries(table).equals(queries) for table in tables):
        return None

    found = [hits(table["rank"].to_numpy()) for table in tables]
    _, video = np.unique(queries["video"].to_pylist(), return_inverse=True)
    return paired(found[: len(before)], found[len(before) :], video)


def _queries(predictions: pa.Table) -> pa.Table:
    return predictions.drop_columns("rank")


def _recall(cells: Sequence[CellRecord]) -> float:
    return statistics.mean(cell["metrics"][names.T2V_R1] for cell in cells)


def _half_interval(cell: CellRecord) -> float:
    metrics = cell["metrics"]
    low = metrics[names.low(names.T2V_R1)]
    high = metrics[names.high(names.T2V_R1)]
    return (high - low) / 2
