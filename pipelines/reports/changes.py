"""The page of a benchmark's round: what has changed since the one before, in a sentence and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.reports import plots
from pipelines.reports.page import ReportPlot, render
from pipelines.reports.tables import TextTable

# of a table's row on the page, by its verdict
CLASSES = {"worse": "worse", "better": "best"}


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
    more_tables: Sequence[TextTable],
    false_alarms: float,
) -> str:
    """HTML: the verdict, a picture of the changes, and the tables that the terminal shows."""
    sentences = verdict(changes)
    plot = _plot(changes, sentences) if changes else None

    # Only what is beyond chance stands out.
    marks = {}
    for change in changes:
        if change.verdict in CLASSES:
            marks[change.row] = CLASSES[change.verdict]

    return render(
        "changes.html",
        title=title,
        written=written,
        sentences=sentences,
        plot=plot,
        changes=replace(change_table, marks=marks),
        more_tables=more_tables,
        false_alarms=f"{false_alarms:.0%}",
    )


def verdict(changes: Sequence[ShownChange]) -> str:
    """What one wants to know first: is anything worse, and by how much."""
    if not changes:
        return "There is no earlier round to compare with."

    # Rows that are new since may have been compared with an earlier round.
    baselines = sorted({change.baseline for change in changes})
    baseline = ", ".join(baselines)

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
    if len(names) == 1:
        return f"{names[0]} is"
    return f"{', '.join(names)} are"


def _plot(changes: Sequence[ShownChange], sentences: str) -> ReportPlot:
    rows = [change.row for change in changes]
    intervals = [(change.change, change.low, change.high) for change in changes]
    return ReportPlot(
        name="changes",
        caption="Change of text to video R@1 since the round before, with its 95% interval.",
        svg=plots.change_with_intervals(rows, intervals),
        seen=sentences,
    )
