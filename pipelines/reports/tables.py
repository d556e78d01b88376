"""The comparison as text: rows of words, and those as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.reports.summary import Estimate, MethodResult, labels

NOTHING = "–"
DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
RECALL = ("R1", "R5", "R10", "MdR", "MnR")
PLAIN = ("params/trainable", "params/percent", "seconds/tune", "seconds/total", "memory/peak_mb")


@dataclass(frozen=True)
class TextTable:
    """Words in rows; the first column names the row, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def overview(cells: Sequence[MethodResult]) -> TextTable:
    """Methods x datasets: t2v R@1, what the papers print behind it."""
    datasets = sorted({cell.dataset for cell in cells})
    place = {(cell.label, cell.dataset): cell for cell in cells}
    rows = [
        [method, *(_with_published(place.get((method, dataset))) for dataset in datasets)]
        for method in labels(cells)
    ]
    return TextTable("Text to video R@1", ["method", *datasets], rows)


def _with_published(cell: MethodResult | None) -> str:
    if cell is None:
        return NOTHING
    printed = _published(cell, "t2v", "R1")
    return spread(cell.number("t2v/R1")) + (f" ({printed})" if printed != NOTHING else "")


def details(dataset: str, direction: str, cells: Sequence[MethodResult]) -> TextTable:
    """One dataset and direction, a row per method: cost, then recall, what papers print beside ours."""
    own = [cell for cell in cells if cell.dataset == dataset]
    columns = {
        "method": [cell.label for cell in own],
        "seeds": [str(len(cell.runs)) for cell in own],
        "trainable": [_plain(cell.value("params/trainable"), ",.0f") for cell in own],
        "% of total": [_plain(cell.value("params/percent"), ".3g") for cell in own],
        "minutes": [_plain(cell.value("seconds/tune"), ".1f", 1 / 60) for cell in own],
        "memory, MB": [_plain(cell.value("memory/peak_mb"), ",.0f") for cell in own],
        "R@1": [spread(cell.number(f"{direction}/R1")) for cell in own],
        "95%": [interval(cell.number(f"{direction}/R1")) for cell in own],
        "published": [_published(cell, direction, "R1") for cell in own],
        "R@5": [spread(cell.number(f"{direction}/R5")) for cell in own],
        "R@10": [spread(cell.number(f"{direction}/R10")) for cell in own],
        "MdR": [spread(cell.number(f"{direction}/MdR")) for cell in own],
        "MnR": [spread(cell.number(f"{direction}/MnR")) for cell in own],
    }
    shown = {name: words for name, words in columns.items() if any(word != NOTHING for word in words)}
    return TextTable(
        f"{dataset}, {DIRECTIONS[direction]}", list(shown), list(zip(*shown.values(), strict=True))
    )


def spread(number: Estimate | None) -> str:
    """`41.2 ± 0.3`: mean and standard deviation over seeds."""
    if number is None:
        return NOTHING
    return f"{number.mean:.1f}" + ("" if number.std is None else f" ± {number.std:.1f}")


def interval(number: Estimate | None) -> str:
    """`40.5–41.9`, within what a percentage can be."""
    if number is None or number.low is None or number.high is None:
        return NOTHING
    return f"{max(number.low, 0):.1f}–{min(number.high, 100):.1f}"


def _published(cell: MethodResult, direction: str, name: str) -> str:
    """`41.7 VoP, 44.8 CMA`."""
    rows = [row for row in cell.published(direction) if name in row.numbers]
    return ", ".join(f"{row.numbers[name]:.1f} {row.paper}" for row in rows) or NOTHING


def _plain(number: float | None, form: str, scale: float = 1.0) -> str:
    return NOTHING if number is None else format(number * scale, form)


def markdown(table: TextTable) -> str:
    """A GitHub table."""
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
    escaped = [[word.replace("|", "\\|") for word in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def latex(table: TextTable) -> str:
    """A tabular for \\usepackage{booktabs}."""
    head, *body = [" & ".join(map(_escaped, line)) + r" \\" for line in [table.columns, *table.rows]]
    shape = "l" + "r" * (len(table.columns) - 1)
    lines = [rf"\begin{{tabular}}{{{shape}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([f"% {table.title}", *lines, r"\end{tabular}"]) + "\n"


def _escaped(word: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "–": "--"} | {char: "\\" + char for char in "&%$#_{}"}
    return re.sub(r"[\\~^±–&%$#_{}]", lambda found: special[found.group()], word)


def comma_separated(cells: Sequence[MethodResult]) -> str:
    """Everything unrounded, a row per cell: mean, std, low and high of each number, and what papers print."""
    rows = [_flat(cell) for cell in cells]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(cell: MethodResult) -> dict[str, object]:
    row: dict[str, object] = {
        "dataset": cell.dataset,
        "method": cell.label,
        "seeds": " ".join(map(str, cell.seeds)),
    }
    row |= {name: cell.value(name) for name in PLAIN}
    for direction in DIRECTIONS:
        for name in RECALL:
            number = cell.number(f"{direction}/{name}")
            for part in ("mean", "std", "low", "high"):
                row[f"{direction}/{name} {part}"] = getattr(number, part, None)
            for printed in cell.published(direction):
                row[f"{direction}/{name} {printed.source}"] = printed.numbers.get(name)
    return row
