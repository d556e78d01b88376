"""What a benchmark prints at its end and writes beside its results: the cells, and what has changed."""

from collections.abc import Sequence

from pipelines.matrix.regressions import Compared
from pipelines.matrix.rounds import Row

Lines = list[tuple[str, ...]]
WORDS = {"finished": "finished", "before": "finished before", "failed": "FAILED"}


def cell_rows(record: Row) -> Lines:
    """A line per cell, its first the header."""
    lines: Lines = [("cell", "seed", "state", "t2v R@1", "v2t R@1", "seconds", "MB", "reason")]
    for cell in record["cells"]:
        numbers = ("", "", "", "")
        if m := cell.get("metrics"):
            numbers = (
                f"{m['t2v/R1']:.1f}",
                f"{m['v2t/R1']:.1f}",
                f"{m['seconds/total']:.0f}",
                f"{m['memory/peak_mb']:.0f}",
            )
        lines.append((cell["row"], str(cell["seed"]), WORDS[cell["state"]], *numbers, cell.get("reason", "")))
    return lines


def change_rows(compared: Sequence[Compared]) -> Lines:
    """A line per row of the matrix, its first the header."""
    lines: Lines = [("t2v R@1 of", "seeds", "before", "now", "change", "95% interval", "verdict")]
    for one in compared:
        change = one.change
        lines.append(
            (
                one.row,
                str(one.seeds or ""),
                "" if one.before is None else f"{one.before:.1f}",
                "" if one.now is None else f"{one.now:.1f}",
                f"{change.change:+.1f}" if change else "",
                f"{change.low:+.1f} .. {change.high:+.1f}" if change and one.word != "identical" else "",
                one.word.upper() if one.word == "worse" else one.word,
            )
        )
    return lines


def aligned(lines: Lines) -> str:
    """For a terminal: numbers to the right, words to the left; a column that is empty is left out."""
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    padded = [_padded(column) for column in columns]
    rows = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]])


def _padded(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    is_words = any(cell[:1].isalpha() for cell in column[1:])
    return [cell.ljust(width) if is_words else cell.rjust(width) for cell in column]


def markdown(lines: Lines) -> str:
    """The same as Markdown."""
    rows = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


def summary(record: Row) -> str:
    """`12 cells: 9 finished now, 3 before, 0 failed`."""
    states = [cell["state"] for cell in record["cells"]]
    now, before, failed = (states.count(state) for state in ("finished", "before", "failed"))
    return f"{len(states)} cells: {now} finished now, {before} before, {failed} failed"


def means(compared: Sequence[Compared]) -> dict[str, float]:
    """For MLflow: each row's R@1 by its name, and how many rows are what."""
    found = {f"t2v/R1/{_name(one.row)}": one.now for one in compared if one.now is not None}
    for word in ("worse", "better", "no change", "identical", "new", "failed"):
        found[f"rows/{word.replace(' ', '_')}"] = sum(one.word == word for one in compared)
    return found


def _name(row: str) -> str:
    """MLflow takes letters, digits and a few signs."""
    return "".join(c if c.isalnum() or c in "_-. /:" else "_" for c in row)
