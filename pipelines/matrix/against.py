"""A round against the ones before it, row by row: what was found then, what now, and is it noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.matrix.rounds import Row
from vopcore.metrics.verdict import Change, hits, paired, unpaired, verdicts

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


def compare_rounds(output: Path, now: Row, earlier: Sequence[Row], false_alarms: float) -> list[Compared]:
    """Each row against the latest round that has it; rows that are one run (in two tables) count once."""
    rows: dict[str, dict[int, Row]] = {}
    for cell in now["cells"]:
        rows.setdefault(cell["row"], {})[cell["seed"]] = cell
    known: dict[tuple[Any, ...], Compared] = {}
    for name, seeds in rows.items():
        runs = tuple(cell.get("key", name) for cell in seeds.values())
        if runs not in known:
            known[runs] = _row(output, name, seeds, earlier)
    compared = list(known.values())
    words = iter(verdicts([one.change for one in compared if one.change], false_alarms))
    return [one if one.change is None else _with_word(one, next(words)) for one in compared]


def _with_word(compared: Compared, word: str) -> Compared:
    return Compared(**{**compared.__dict__, "word": word})


def _row(output: Path, name: str, seeds: dict[int, Row], earlier: Sequence[Row]) -> Compared:
    finished = {seed: cell for seed, cell in seeds.items() if "metrics" in cell}
    if not finished:
        return Compared(name, "failed")
    for record in reversed(earlier):
        old = {c["seed"]: c for c in record["cells"] if c["row"] == name and "metrics" in c}
        both = sorted(old.keys() & finished.keys())
        if both:
            return _compare(output, name, record["id"], [old[s] for s in both], [finished[s] for s in both])
    return Compared(name, "new", now=float(np.mean([_recall(cell) for cell in finished.values()])))


def _compare(output: Path, name: str, against: str, old: Sequence[Row], new: Sequence[Row]) -> Compared:
    before, now = (float(np.mean([_recall(cell) for cell in cells])) for cells in (old, new))
    if any(a["data_hash"] != b["data_hash"] for a, b in zip(old, new, strict=True)):
        return Compared(name, "other data", against, len(old), before, now)
    change = _paired(output, old, new) or unpaired(
        [_recall(cell) for cell in old],
        [_recall(cell) for cell in new],
        [_reach(cell) for cell in (*old, *new) if f"{DECIDES}_low" in cell["metrics"]],
    )
    return Compared(name, "", against, len(old), before, now, change)


def _paired(output: Path, old: Sequence[Row], new: Sequence[Row]) -> Change | None:
    """By query, where the predictions of all runs are still there."""
    files = [output / cell["predictions"] for cell in (*old, *new)]
    if not all(file.is_file() for file in files):
        return None
    tables = [pq.read_table(file, columns=["caption", "video", "rank"]) for file in files]
    if any(not table.drop_columns("rank").equals(tables[0].drop_columns("rank")) for table in tables):
        return None
    found = [hits(table["rank"].to_numpy()) for table in tables]
    video = np.unique(tables[0]["video"].to_pylist(), return_inverse=True)[1]
    return paired(found[: len(old)], found[len(old) :], video)


def _recall(cell: Row) -> float:
    return cell["metrics"][DECIDES]


def _reach(cell: Row) -> float:
    return (cell["metrics"][f"{DECIDES}_high"] - cell["metrics"][f"{DECIDES}_low"]) / 2


def as_json(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """For machines."""
    return [asdict(one) for one in compared]
