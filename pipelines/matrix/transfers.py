"""A round's cells as a matrix of what they were tuned on and what they were tested on."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.matrix.rounds import CellRecord, RoundRecord
from pipelines.reports.transfer import Tested, Transfer, transfers
from vopcore.config import UNTRAINED
from vopcore.metrics import names

Row = tuple[str, str, str]  # method, what it was tuned on, variant


def transfer_matrix(
    output: Path,
    record: RoundRecord,
    seed_std: float,
) -> list[Transfer]:
    """Each method on each test split, less the frozen CLIP; empty where no other split was searched."""
    by_row: dict[Row, dict[str, CellRecord]] = {}
    for cell in record["cells"]:
        if cell.get("transfers"):
            row = (cell["method"], cell["tuned_on"], cell["variant"])
            # one run may stand in two tables
            by_row.setdefault(row, {})[cell["key"]] = cell

    tested = []
    for (method, tuned_on, variant), cells in by_row.items():
        zero_shot = _zero_shot(by_row, tuned_on, variant)
        label = f"{method} {variant}".strip()
        for tested_on in _splits(tuned_on, cells):
            is_frozen = method == UNTRAINED
            tested.append(
                Tested(
                    label,
                    tuned_on,
                    tested_on,
                    _recall(list(cells.values()), tuned_on, tested_on),
                    _tables(output, list(cells.values()), tuned_on, tested_on),
                    [] if is_frozen else _tables(output, zero_shot, tuned_on, tested_on),
                )
            )
    return transfers(tested, seed_std)


def _zero_shot(
    rows: dict[Row, dict[str, CellRecord]],
    tuned_on: str,
    variant: str,
) -> list[CellRecord]:
    """The frozen CLIP with the same frames: that of the same variant, else that of no variant."""
    for wanted in (variant, ""):
        cells = rows.get((UNTRAINED, tuned_on, wanted))
        if cells:
            return list(cells.values())
    return []


def _splits(tuned_on: str, cells: dict[str, CellRecord]) -> list[str]:
    """Its own test split first."""
    splits = {tuned_on: None}
    for cell in cells.values():
        splits |= dict.fromkeys(cell["transfers"])
    return list(splits)


def _recall(
    cells: Sequence[CellRecord],
    tuned_on: str,
    tested_on: str,
) -> float:
    """t2v R@1 in percent, the mean over seeds."""
    metric = names.T2V_R1
    if tested_on != tuned_on:
        metric = names.transfer(tested_on, metric)
    return sum(cell["metrics"][metric] for cell in cells) / len(cells)


def _tables(
    output: Path,
    cells: Sequence[CellRecord],
    tuned_on: str,
    tested_on: str,
) -> list[pa.Table]:
    """PREDICTIONS of each seed that still has them."""
    tables = []
    for cell in cells:
        name = cell["predictions"] if tested_on == tuned_on else cell["transfers"].get(tested_on)
        if name and (output / name).is_file():
            tables.append(
                pq.read_table(
                    output / name,
                    columns=["caption", "video", "rank"],
                )
            )
    return tables
