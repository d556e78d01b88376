"""What a benchmark prints at its end and writes beside its results: the cells, and what has changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.matrix.regressions import RowChange
from pipelines.matrix.rounds import RoundRecord
from vopcore.metrics import names

Lines = list[tuple[str, ...]]
STATES = {"finished": "finished", "before": "finished before", "failed": "FAILED"}
VERDICTS = ("worse", "better", "no change", "identical", "new", "failed")


def cell_rows(record: RoundRecord) -> Lines:
    """A line per cell, its first the header."""
    lines: Lines = [("cell", "seed", "state", "t2v R@1", "v2t R@1", "seconds", "MB", "reason")]
    for cell in record["cells"]:
        numbers = _numbers(cell.get("metrics"))
        reason = cell.get("reason", "")
        lines.append((cell["row"], str(cell["seed"]), STATES[cell["state"]], *numbers, reason))
    return lines


def _numbers(metrics: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    """Recall both ways, seconds and megabytes; empty for a cell that failed."""
    if not metrics:
        return ("", "", "", "")
    return (
        f"{metrics[names.T2V_R1]:.1f}",
        f"{metrics[names.V2T_R1]:.1f}",
        f"{metrics[names.TOTAL_SECONDS]:.0f}",
        f"{metrics[names.PEAK_MEMORY]:.0f}",
    )


def change_rows(changes: Sequence[RowChange]) -> Lines:
    """A line per row of the matrix, its first the header."""
    lines: Lines = [("t2v R@1 of", "seeds", "before", "now", "change", "95% interval", "verdict")]
    for row in changes:
        difference = interval = ""
        if row.change:
            difference = f"{row.change.change:+.1f}"
        if row.change and row.word != "identical":
            interval = f"{row.change.low:+.1f} .. {row.change.high:+.1f}"

        verdict = row.word.upper() if row.word == "worse" else row.word
        seeds = str(row.seeds or "")
        lines.append((row.row, seeds, _recall(row.before), _recall(row.now), difference, interval, verdict))
    return lines


def _recall(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"


def aligned(lines: Lines) -> str:
    """For a terminal: numbers to the right, words to the left; a column that is empty is left out."""
    columns = list(zip(*lines, strict=True))
    padded = [_padded(column) for column in columns if any(column[1:])]
    rows = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    rule = "-" * max(map(len, rows))
    return "\n".join([rows[0], rule, *rows[1:]])


def _padded(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    has_words = any(cell[:1].isalpha() for cell in column[1:])
    return [cell.ljust(width) if has_words else cell.rjust(width) for cell in column]


def markdown(lines: Lines) -> str:
    """The same as Markdown."""
    rows = []
    for line in lines:
        cells = " | ".join(cell.replace("|", "/") for cell in line)
        rows.append(f"| {cells} |")
    rule = "|" + "---|" * len(lines[0])
    return "\n".join([rows[0], rule, *rows[1:]])


def summary(record: RoundRecord) -> str:
    """`12 cells: 9 finished now, 3 before, 0 failed`."""
    states = [cell["state"] for cell in record["cells"]]
    return (
        f"{len(states)} cells: {states.count('finished')} finished now, {states.count('before')} before,"
        f" {states.count('failed')} failed"
    )


def mlflow_metrics(changes: Sequence[RowChange]) -> dict[str, float]:
    """For MLflow: each row's R@1 by its name, and how many rows are what."""
    metrics: dict[str, float] = {}
    for row in changes:
        if row.now is not None:
            row_name = _metric_name(row.row)
            metrics[f"{names.T2V_R1}/{row_name}"] = row.now
    for verdict in VERDICTS:
        metrics[f"rows/{verdict.replace(' ', '_')}"] = sum(row.word == verdict for row in changes)
    return metrics


def _metric_name(row: str) -> str:
    """MLflow takes letters, digits and a few signs."""
    return "".join(letter if letter.isalnum() or letter in "_-. /:" else "_" for letter in row)
