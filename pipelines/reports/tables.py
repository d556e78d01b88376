"""The comparison as text: rows of words, and those as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.reports.ranking import Ranking
from pipelines.reports.summary import Estimate, MethodResult, labels
from pipelines.reports.text import spreadsheet_cell

NOTHING = "–"
DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
RECALL = ("R1", "R5", "R10", "MdR", "MnR")
PLAIN = ("params/trainable", "params/percent", "seconds/tune", "seconds/total", "memory/peak_mb")
MARKS = {"best": "★", "tied": "≈"}  # behind the R@1 of the best method, and of those tied with it


@dataclass(frozen=True)
class TextTable:
    """Words in rows; the first column names the row, the others are numbers.

    marks: `best` or `tied`, by the name of the row.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Mapping[str, str] = field(default_factory=dict)


def overview(results: Sequence[MethodResult], rankings: Mapping[str, Ranking]) -> TextTable:
    """Methods x data sets: t2v R@1, what the papers print behind it."""
    datasets = sorted({result.dataset for result in results})
    by_place = {(result.label, result.dataset): result for result in results}

    rows = []
    for label in labels(results):
        row = [label]
        for dataset in datasets:
            result = by_place.get((label, dataset))
            row.append(_with_published(result, rankings[dataset]) if result else NOTHING)
        rows.append(row)
    return TextTable("Text to video R@1", ["method", *datasets], rows)


def _with_published(result: MethodResult, ranking: Ranking) -> str:
    words = _marked(spread(result.number("t2v/R1")), ranking.mark(result))
    printed = _published(result, "t2v", "R1")
    return words if printed == NOTHING else f"{words} ({printed})"


def details(
    dataset: str, direction: str, results: Sequence[MethodResult], ranking: Ranking | None = None
) -> TextTable:
    """One data set and direction, a row per method: recall, what papers print, then what it cost.

    Columns that hold nothing are left out.
    """
    shown = [result for result in results if result.dataset == dataset]
    names = _column_names()
    rows = [_detail_row(result, direction, ranking) for result in shown]

    filled = [column for column in range(len(names)) if any(row[column] != NOTHING for row in rows)]
    marks = {result.label: ranking.mark(result) for result in shown} if ranking else {}
    return TextTable(
        f"{dataset}, {DIRECTIONS[direction]}",
        [names[column] for column in filled],
        [[row[column] for column in filled] for row in rows],
        {label: mark for label, mark in marks.items() if mark},
    )


def _column_names() -> list[str]:
    recall = ["R@1", "95%", "published", "R@5", "R@10", "MdR", "MnR"]
    return ["method", *recall, "trainable", "% of total", "minutes", "memory, MB", "seeds"]


def _detail_row(result: MethodResult, direction: str, ranking: Ranking | None) -> list[str]:
    """In the order of `_column_names`."""
    recall = spread(result.number(f"{direction}/R1"))
    minutes = result.value("seconds/tune")
    return [
        result.label,
        _marked(recall, ranking.mark(result)) if ranking else recall,
        interval(result.number(f"{direction}/R1")),
        _published(result, direction, "R1"),
        spread(result.number(f"{direction}/R5")),
        spread(result.number(f"{direction}/R10")),
        spread(result.number(f"{direction}/MdR")),
        spread(result.number(f"{direction}/MnR")),
        _plain(result.value("params/trainable"), ",.0f"),
        _plain(result.value("params/percent"), ".3g"),
        _plain(None if minutes is None else minutes / 60, ".1f"),
        _plain(result.value("memory/peak_mb"), ",.0f"),
        str(len(result.runs)),
    ]


def _marked(words: str, mark: str) -> str:
    return f"{words} {MARKS[mark]}" if mark else words


def spread(number: Estimate | None) -> str:
    """`41.2 ± 0.3`: mean and standard deviation over seeds."""
    if number is None:
        return NOTHING
    deviation = "" if number.std is None else f" ± {number.std:.1f}"
    return f"{number.mean:.1f}{deviation}"


def interval(number: Estimate | None) -> str:
    """`40.5–41.9`, within what a percentage can be."""
    if number is None or number.low is None or number.high is None:
        return NOTHING
    return f"{max(number.low, 0):.1f}–{min(number.high, 100):.1f}"


def _published(result: MethodResult, direction: str, name: str) -> str:
    """`41.7 VoP, 43.1 CMA`."""
    rows = [row for row in result.published(direction) if name in row.numbers]
    return ", ".join(f"{row.numbers[name]:.1f} {row.paper}" for row in rows) or NOTHING


def _plain(number: float | None, form: str) -> str:
    return NOTHING if number is None else format(number, form)


def markdown(table: TextTable) -> str:
    """A GitHub table."""
    ruler = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [table.columns, ruler, *table.rows]

    text = ""
    for line in lines:
        escaped = [word.replace("|", "\\|") for word in line]
        text += f"| {' | '.join(escaped)} |\n"
    return text


def latex(table: TextTable) -> str:
    """A tabular for \\usepackage{booktabs}."""
    lines = []
    for words in [table.columns, *table.rows]:
        lines.append(" & ".join(_latex_word(word) for word in words) + r" \\")

    shape = "l" + "r" * (len(table.columns) - 1)
    parts = [
        f"% {table.title}",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(parts) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "★": r"$\star$",
    "≈": r"$\approx$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _latex_word(word: str) -> str:
    return re.sub(r"[\\~^±–★≈&%$#_{}]", lambda match: LATEX[match.group()], word)


def comma_separated(results: Sequence[MethodResult]) -> str:
    """Everything unrounded, a row per method: mean, std, low, high of each number; what papers print."""
    rows = [_csv_row(result) for result in results]
    columns = list(dict.fromkeys(name for row in rows for name in row))

    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(result: MethodResult) -> dict[str, object]:
    row: dict[str, object] = {
        "dataset": spreadsheet_cell(result.dataset),
        "method": spreadsheet_cell(result.label),
        "seeds": " ".join(map(str, result.seeds)),
    }
    for name in PLAIN:
        row[name] = result.value(name)

    for direction in DIRECTIONS:
        published = result.published(direction)
        for name in RECALL:
            number = result.number(f"{direction}/{name}")
            for statistic in ("mean", "std", "low", "high"):
                row[f"{direction}/{name} {statistic}"] = getattr(number, statistic, None)
            for printed in published:
                row[f"{direction}/{name} {printed.source}"] = printed.numbers.get(name)
    return row
