"""The page of a benchmark's round: what has changed since the one before, in a sentence and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.reports import plots
from pipelines.reports.page import ReportPlot, render
from pipelines.reports.tables import TextTable

CLASSES = {"worse": "worse", "better": "best"}  # of a table's row on the page, by its verdict


@dataclass(frozen=True)
class ShownChange:
    """A row of a benchmark that was measured twice. `change` and its 95% interval: points of t2v R@1.

    verdict: worse, better, no change or identical. baseline: the round it was compared with.
    """

    row: str
    verdict: str
    baseline: str
    change: float
    low: float
    high: float


def changes_page(
    title: str,
    written: str,
    changes: Sequence[ShownChange],
    change_table: TextTable,
    cell_table: TextTable,
    false_alarms: float,
) -> str:
    """HTML: the verdict, a picture of the changes, and the tables that the terminal shows."""
    sentences = verdict(changes)
    marks = {change.row: CLASSES[change.verdict] for change in changes if change.verdict in CLASSES}
    return render(
        "changes.html",
        title=title,
        written=written,
        sentences=sentences,
        plot=_plot(changes, sentences) if changes else None,
        changes=TextTable(change_table.title, change_table.columns, change_table.rows, marks),
        cells=cell_table,
        false_alarms=f"{false_alarms:.0%}",
    )


def verdict(changes: Sequence[ShownChange]) -> str:
    """What one wants to know first: is anything worse, and by how much."""
    if not changes:
        return "There is no earlier round to compare with."

    baseline = ", ".join(sorted({change.baseline for change in changes}))
    worse = [change for change in changes if change.verdict == "worse"]
    better = [change for change in changes if change.verdict == "better"]
    if not worse and not better:
        return f"Nothing has changed since round {baseline} that chance would not explain."

    sentences = []
    if worse:
        sentences.append(f"{_names(worse)} worse than in round {baseline}, by more than chance.")
    if better:
        sentences.append(f"{_names(better)} better than in round {baseline}, by more than chance.")
    num_others = len(changes) - len(worse) - len(better)
    if num_others:
        sentences.append(f"The other {num_others} have not changed by more than chance.")
    return " ".join(sentences)


def _names(changes: Sequence[ShownChange]) -> str:
    """`main: msvd vop (-2.1 points) is`."""
    names = [f"{change.row} ({change.change:+.1f} points)" for change in changes]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _plot(changes: Sequence[ShownChange], sentences: str) -> ReportPlot:
    caption = "Change of text to video R@1 since the round before, with its 95% interval."
    names = [change.row for change in changes]
    numbers = [(change.change, change.low, change.high) for change in changes]
    return ReportPlot("changes", caption, plots.change_with_intervals(names, numbers), sentences)
