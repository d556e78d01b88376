"""What a benchmark prints at its end and writes beside its results: the cells, and what has changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.matrix.regressions import RowChange
from pipelines.matrix.rounds import RoundRecord
from vopcore.metrics import names

Lines = list[tuple[str, ...]]
STATES = {
    "finished": "finished",
    "before": "finished before",
    "failed": "FAILED",
}
VERDICTS = ("worse", "better", "no change", "identical", "new", "failed")


def cell_rows(record: RoundRecord) -> Lines:
    """A line per cell, its first the header."""
    header = ("cell", "seed", "state", "t2v R@1", "v2t R@1", "seconds", "MB", "reason")
    lines: Lines = [header]
    for cell in record["cells"]:
        numbers = _numbers(cell.get("metrics"))
        line = (
            cell["row"],
            str(cell["seed"]),
            STATES[cell["state"]],
            *numbers,
            cell.get("reason", ""),
        )
        lines.append(line)
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
    header = ("t2v R@1 of", "seeds", "before", "now", "change", "95% interval", "verdict")
    lines: Lines = [header]
    for row in changes:
        difference = ""
        interval = ""
        change = row.change
        if change:
            difference = f"{change.change:+.1f}"
        if change and row.word != "identical":
            interval = f"{change.low:+.1f} .. {change.high:+.1f}"

        # What somebody has to look at stands out.
        verdict = row.word.upper() if row.word == "worse" else row.word
        line = (
            row.row,
            str(row.seeds or ""),
            _recall(row.before),
            _recall(row.now),
            difference,
            interval,
            verdict,
        )
        lines.append(line)
    return lines


def _recall(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"


def aligned(lines: Lines) -> str:
    """For a terminal: numbers to the right, words to the left; a column that is empty is left out."""
    padded_columns = []
    for column in zip(*lines, strict=True):
        # The first line is the header.
        if any(column[1:]):
            padded_columns.append(_padded(column))

    rows = []
    for cells in zip(*padded_columns, strict=True):
        row = "  ".join(cells)
        rows.append(row.rstrip())

    rule = "-" * max(map(len, rows))
    return "\n".join([rows[0], rule, *rows[1:]])


def _padded(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    has_words = any(cell[:1].isalpha() for cell in column[1:])
    if has_words:
        return [cell.ljust(width) for cell in column]
    return [cell.rjust(width) for cell in column]


def markdown(lines: Lines) -> str:
    """The same as Markdown."""
    rows = []
    for line in lines:
        # A bar would end its cell.
        cells = [cell.replace("|", "/") for cell in line]
        row = " | ".join(cells)
        rows.append(f"| {row} |")

    rule = "|" + "---|" * len(lines[0])
    return "\n".join([rows[0], rule, *rows[1:]])


def summary(record: RoundRecord) -> str:
    """`12 cells: 9 finished now, 3 before, 0 failed`."""
    states = [cell["state"] for cell in record["cells"]]
    num_finished = states.count("finished")
    num_before = states.count("before")
    num_failed = states.count("failed")
    return f"{len(states)} cells: {num_finished} finished now, {num_before} before, {num_failed} failed"


def mlflow_metrics(changes: Sequence[RowChange]) -> dict[str, float]:
    """For MLflow: each row's R@1 by its name, and how many rows are what."""
    metrics: dict[str, float] = {}
    for row in changes:
        if row.now is not None:
            row_name = _metric_name(row.row)
            metrics[f"{names.T2V_R1}/{row_name}"] = row.now

    for verdict in VERDICTS:
        name = verdict.replace(" ", "_")
        num_rows = sum(row.word == verdict for row in changes)
        metrics[f"rows/{name}"] = num_rows
    return metrics


def _metric_name(row: str) -> str:
    """MLflow takes letters, digits and a few signs."""
    letters = []
    for letter in row:
        is_allowed = letter.isalnum() or letter in "_-. /:"
        letters.append(letter if is_allowed else "_")
    return "".join(letters)
