"""A round against the ones before it, row by row: what was found then, what now, and is it noise."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.matrix.rounds import Row
from vopcore.metrics.verdict import Change, Evidence, hits, judge, paired, unpaired

DECIDES = "t2v/R1"


@dataclass(frozen=True)
class Compared:
    """One row of the matrix, the seeds that both rounds finished taken together."""

    row: str
    word: str  # worse, better, no change, identical; or why nothing can be said: new, failed, other data
    against: str = ""  # the round it was compared with
    seeds: int = 0
    before: float | None = None
    now: float | None = None
    change: Change | None = None


def compare_rounds(
    output: Path, now: Row, earlier: Sequence[Row], false_alarms: float, seed_std: float
) -> list[Compared]:
    """Each row against the latest round that has it; rows that are one run (in two tables) count once."""
    rows: dict[str, dict[int, Row]] = {}
    for cell in now["cells"]:
        rows.setdefault(cell["row"], {})[cell["seed"]] = cell
    known: dict[tuple[str, ...], tuple[Compared, Evidence | None]] = {}
    for name, seeds in rows.items():
        runs = tuple(cell.get("key", name) for cell in seeds.values())
        if runs not in known:
            known[runs] = _row(output, name, seeds, earlier)
    changes = iter(judge([evidence for _, evidence in known.values() if evidence], false_alarms, seed_std))
    return [_judged(one, next(changes)) if evidence else one for one, evidence in known.values()]


def _judged(row: Compared, change: Change) -> Compared:
    return replace(row, word=change.word, change=change)


def _row(
    output: Path, name: str, seeds: dict[int, Row], earlier: Sequence[Row]
) -> tuple[Compared, Evidence | None]:
    finished = {seed: cell for seed, cell in seeds.items() if "metrics" in cell}
    if not finished:
        return Compared(name, "failed"), None
    for record in reversed(earlier):
        old = {c["seed"]: c for c in record["cells"] if c["row"] == name and "metrics" in c}
        both = sorted(old.keys() & finished.keys())
        if both:
            return _beside(output, name, record["id"], [old[s] for s in both], [finished[s] for s in both])
    return Compared(name, "new", seeds=len(finished), now=_recall(list(finished.values()))), None


def _beside(
    output: Path, name: str, against: str, old: Sequence[Row], new: Sequence[Row]
) -> tuple[Compared, Evidence | None]:
    row = Compared(name, "other data", against, len(old), _recall(old), _recall(new))
    if any(a["data_hash"] != b["data_hash"] for a, b in zip(old, new, strict=True)):
        return row, None
    evidence = _by_query(output, old, new) or unpaired(
        [_recall([cell]) for cell in old],
        [_recall([cell]) for cell in new],
        [_reach(cell) for cell in (*old, *new) if f"{DECIDES}_low" in cell["metrics"]],
    )
    return row, evidence


def _by_query(output: Path, old: Sequence[Row], new: Sequence[Row]) -> Evidence | None:
    """Where the predictions of all runs are still there, on the same queries."""
    files = [output / cell["predictions"] for cell in (*old, *new)]
    if not all(file.is_file() for file in files):
        return None
    tables = [pq.read_table(file, columns=["caption", "video", "rank"]) for file in files]
    if any(not table.drop_columns("rank").equals(tables[0].drop_columns("rank")) for table in tables):
        return None
    found = [hits(table["rank"].to_numpy()) for table in tables]
    video = np.unique(tables[0]["video"].to_pylist(), return_inverse=True)[1]
    return paired(found[: len(old)], found[len(old) :], video)


def _recall(cells: Sequence[Row]) -> float:
    return statistics.mean(cell["metrics"][DECIDES] for cell in cells)


def _reach(cell: Row) -> float:
    return (cell["metrics"][f"{DECIDES}_high"] - cell["metrics"][f"{DECIDES}_low"]) / 2
