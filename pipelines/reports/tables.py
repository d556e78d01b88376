"""The comparison as text: rows of words, and those as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.reports.ranking import Ranking
from pipelines.reports.summary import MethodResult, SeedMean, labels
from pipelines.reports.text import spreadsheet_cell
from vopcore.metrics import names

NOTHING = "–"
DIRECTIONS = {
    names.T2V: "text to video",
    names.V2T: "video to text",
}
COSTS = (
    names.TRAINABLE,
    names.TRAINABLE_PERCENT,
    names.TUNING_SECONDS,
    names.TOTAL_SECONDS,
    names.PEAK_MEMORY,
)
STATISTICS = ("mean", "std", "low", "high")
MARKS = {  # behind the R@1 of the best method, and of those tied with it
    "best": "★",
    "tied": "≈",
}


@dataclass(frozen=True)
class TextTable:
    """Words in rows; the first column names the row, the others are numbers.

    marks: `best` or `tied`, by the name of the row.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Mapping[str, str] = field(default_factory=dict)


def overview(
    results: Sequence[MethodResult],
    rankings: Mapping[str, Ranking],
) -> TextTable:
    """Methods x data sets: t2v R@1, what the papers print behind it."""
    datasets = sorted({result.dataset for result in results})
    result_of = {}
    for result in results:
        result_of[result.label, result.dataset] = result

    rows = []
    for label in labels(results):
        row = [label]
        for dataset in datasets:
            known_result = result_of.get((label, dataset))
            if known_result is None:
                row.append(NOTHING)
            else:
                row.append(_with_published(known_result, rankings[dataset]))
        rows.append(row)
    return TextTable("Text to video R@1", ["method", *datasets], rows)


def _with_published(result: MethodResult, ranking: Ranking) -> str:
    """`41.2 ± 0.3 ★ (41.7 VoP)`."""
    recall = spread(result.number(names.T2V_R1))
    words = _marked(recall, ranking.mark(result))

    printed = _published(result, names.T2V, "R1")
    if printed == NOTHING:
        return words
    return f"{words} ({printed})"


def details(
    dataset: str,
    direction: str,
    results: Sequence[MethodResult],
    ranking: Ranking | None = None,
) -> TextTable:
    """One data set and direction, a row per method: recall, what papers print, then what it cost.

    Columns that hold nothing are left out.
    """
    shown = [result for result in results if result.dataset == dataset]
    rows = [_detail_row(result, direction, ranking) for result in shown]
    columns = _filled_columns(rows)
    cells = []
    for row in rows:
        cells.append([row[column] for column in columns])

    marks = {}
    if ranking is not None:
        for result in shown:
            mark = ranking.mark(result)
            if mark:
                marks[result.label] = mark

    return TextTable(
        title=f"{dataset}, {DIRECTIONS[direction]}",
        columns=columns,
        rows=cells,
        marks=marks,
    )


def _filled_columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns with something in them, in the order of `_detail_row`."""
    columns = []
    for column in rows[0]:
        cells = {row[column] for row in rows}
        if cells != {NOTHING}:
            columns.append(column)
    return columns


def _detail_row(
    result: MethodResult,
    direction: str,
    ranking: Ranking | None,
) -> dict[str, str]:
    """The words of one method by column."""
    recall_at_1 = result.number(names.of(direction, "R1"))
    recall_words = spread(recall_at_1)
    if ranking is not None:
        recall_words = _marked(recall_words, ranking.mark(result))

    seconds = result.value(names.TUNING_SECONDS)
    minutes = None if seconds is None else seconds / 60

    return {
        "method": result.label,
        "R@1": recall_words,
        "95%": interval(recall_at_1),
        "published": _published(result, direction, "R1"),
        "R@5": spread(result.number(names.of(direction, "R5"))),
        "R@10": spread(result.number(names.of(direction, "R10"))),
        "MdR": spread(result.number(names.of(direction, "MdR"))),
        "MnR": spread(result.number(names.of(direction, "MnR"))),
        "trainable": _formatted(result.value(names.TRAINABLE), ",.0f"),
        "% of total": _formatted(result.value(names.TRAINABLE_PERCENT), ".3g"),
        "minutes": _formatted(minutes, ".1f"),
        "memory, MB": _formatted(result.value(names.PEAK_MEMORY), ",.0f"),
        "seeds": str(len(result.runs)),
    }


def _marked(words: str, mark: str) -> str:
    if not mark:
        return words
    return f"{words} {MARKS[mark]}"


def spread(number: SeedMean | None) -> str:
    """`41.2 ± 0.3`: mean and standard deviation over seeds."""
    if number is None:
        return NOTHING
    if number.std is None:
        return f"{number.mean:.1f}"
    return f"{number.mean:.1f} ± {number.std:.1f}"


def interval(number: SeedMean | None) -> str:
    """`40.5–41.9`, within what a percentage can be."""
    if number is None or number.low is None or number.high is None:
        return NOTHING
    low = max(number.low, 0)
    high = min(number.high, 100)
    return f"{low:.1f}–{high:.1f}"


def _published(
    result: MethodResult,
    direction: str,
    name: str,
) -> str:
    """`41.7 VoP, 43.1 CMA`."""
    printed = []
    for row in result.published(direction):
        number = row.numbers.get(name)
        if number is not None:
            printed.append(f"{number:.1f} {row.paper}")

    if not printed:
        return NOTHING
    return ", ".join(printed)


def _formatted(number: float | None, form: str) -> str:
    if number is None:
        return NOTHING
    return format(number, form)


def markdown(table: TextTable) -> str:
    """A GitHub table."""
    # Names to the left, numbers to the right.
    num_numbers = len(table.columns) - 1
    ruler = ["---", *["---:"] * num_numbers]
    lines = [table.columns, ruler, *table.rows]

    text = ""
    for line in lines:
        # A bar in a name would begin another column.
        escaped = [word.replace("|", "\\|") for word in line]
        text += f"| {' | '.join(escaped)} |\n"
    return text


def latex(table: TextTable) -> str:
    """A tabular for \\usepackage{booktabs}."""
    # booktabs has a rule above the head, one below it, and one at the end.
    lines = []
    for words in [table.columns, *table.rows]:
        escaped = [_latex_word(word) for word in words]
        lines.append(" & ".join(escaped) + r" \\")
    head = lines[0]
    body = lines[1:]

    # Names to the left, numbers to the right.
    num_numbers = len(table.columns) - 1
    alignment = "l" + "r" * num_numbers

    text = [
        f"% {table.title}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(text) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "★": r"$\star$",
    "≈": r"$\approx$",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
}
LATEX_TRANSLATION = str.maketrans(LATEX)


def _latex_word(word: str) -> str:
    # In one pass: what replaces one sign holds other signs that must stay.
    return word.translate(LATEX_TRANSLATION)


def comma_separated(results: Sequence[MethodResult]) -> str:
    """Everything unrounded, a row per method: mean, std, low, high of each number; what papers print."""
    rows = [_csv_row(result) for result in results]

    # A paper's column stands where the first row has it; a dict keeps the order of first sight.
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))

    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(result: MethodResult) -> dict[str, object]:
    seeds = [str(seed) for seed in result.seeds]
    row: dict[str, object] = {
        "dataset": spreadsheet_cell(result.dataset),
        "method": spreadsheet_cell(result.label),
        "seeds": " ".join(seeds),
    }
    for cost in COSTS:
        row[cost] = result.value(cost)

    # Both directions in one row: a spreadsheet filters by method.
    for direction in DIRECTIONS:
        for number_name in names.RANKS:
            row |= _csv_number(result, direction, number_name)
    return row


def _csv_number(
    result: MethodResult,
    direction: str,
    number_name: str,
) -> dict[str, object]:
    """The cells of one number: its statistics over seeds, and what each paper prints."""
    metric = names.of(direction, number_name)
    number = result.number(metric)

    cells: dict[str, object] = {}
    for statistic in STATISTICS:
        # A number that was not measured leaves its cells empty: every row has the same columns.
        column = f"{metric} {statistic}"
        cells[column] = getattr(number, statistic, None)

    for row in result.published(direction):
        column = f"{metric} {row.source}"
        cells[column] = row.numbers.get(number_name)
    return cells
