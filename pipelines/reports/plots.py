"""The plots of a report, as SVG text: narrow, with large words and the legend below, for a phone too."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from pipelines.reports.published import PublishedRow
from pipelines.reports.ranking import Ranking
from pipelines.reports.summary import MethodResult, SeedMean, labels
from vopcore.metrics import names

Curves = Mapping[str, Sequence[tuple[int, float]]]  # label: (step, value)

# label: colour and marker, the same in all plots
Palette = Mapping[str, tuple[str, str]]

INK = "#2b2f36"  # the page gives INK, FAINT and GRID other values in the dark
FAINT = "#7a828e"
GRID = "#e7eaef"
BETTER = "#2a9d6f"
WORSE = "#d1495b"
COLOURS = (
    "#1f6feb",
    WORSE,
    BETTER,
    "#c77d0a",
    "#7b4fbf",
    "#0f8b8d",
    "#a3476f",
    "#6f8522",
    "#5b6b85",
)
MARKERS = "osD^vP"
WIDTH = 5.2  # inches: on a phone the words are two thirds as large
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "savefig.facecolor": "none",
    "svg.hashsalt": "vopcore",  # the same numbers, the same file
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
BINS = {  # of ranks: from and to; a tie may make a rank of 1.5
    "1": (1, 1.5),
    "2–5": (1.5, 5.5),
    "6–10": (5.5, 10.5),
    "11–50": (10.5, 50.5),
    ">50": (50.5, np.inf),
}


def palette(results: Sequence[MethodResult]) -> Palette:
    """A look for each label: nine colours with one marker, then the same colours with the next."""
    # Colours change first: they tell more than markers do.
    looks = []
    for marker in MARKERS:
        for colour in COLOURS:
            looks.append((colour, marker))

    look_of = {}
    for place, label in enumerate(labels(results)):
        look_of[label] = looks[place % len(looks)]
    return look_of


def recall_with_intervals(
    results: Sequence[MethodResult],
    ranking: Ranking,
    looks: Palette,
) -> str:
    """t2v R@1 of each method of one data set, best on top, with its 95% interval; papers' numbers hollow."""
    # The vertical axis goes up, so the best comes last.
    ordered = sorted(results, key=lambda result: result.value(names.T2V_R1) or 0)

    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(1.1 + 0.32 * len(ordered))
        for place, result in enumerate(ordered):
            _draw_recall(axes, result, place, looks[result.label])

        row_names = [_with_mark(result, ranking) for result in ordered]
        axes.set_yticks(range(len(ordered)), row_names)
        axes.set_ylim(-0.6, len(ordered) - 0.3)
        axes.set_xlabel("text to video R@1, %")
        axes.grid(visible=False, axis="y")
        return _svg(figure)


def _draw_recall(
    axes: Axes,
    result: MethodResult,
    place: int,
    look: tuple[str, str],
) -> None:
    """One row: the method's number with its interval, and above it, hollow, what papers print."""
    recall = result.number(names.T2V_R1)
    assert recall is not None, "a row without recall"

    colour, marker = look
    axes.errorbar(
        recall.mean,
        place,
        xerr=_whiskers(recall),
        color=colour,
        fmt=marker,
        ms=7,
        lw=1.6,
        capsize=3,
    )
    for row in result.published(names.T2V):
        axes.plot(
            row.numbers["R1"],
            place + 0.28,
            marker="d",
            mfc="none",
            mec=FAINT,
            ls="",
            ms=6,
        )


def _with_mark(result: MethodResult, ranking: Ranking) -> str:
    mark = ranking.mark(result)
    if not mark:
        return result.label
    return f"{result.label} ({mark})"


def recall_against_parameters(results: Sequence[MethodResult], looks: Palette) -> str:
    """t2v R@1 of one data set against trainable parameters; the same experiment in a paper is hollow."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.6 + _legend_height(len(results)))
        for result in results:
            _draw_result(axes, result, looks[result.label])
            for row in result.published(names.T2V):
                _draw_published(axes, row)

        axes.set(
            xscale="log",
            xlabel="trainable parameters",
            ylabel="text to video R@1, %",
        )

        # The axis' own labels are formulas, which STYLE does not set: 10k and 1M are plain text.
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

        # Horizontal lines alone give a log axis nothing to choose its ends by.
        if not any(result.value(names.TRAINABLE) for result in results):
            axes.set_xlim(1e3, 1e9)
        _legend_below(figure)
        return _svg(figure)


def _draw_result(
    axes: Axes,
    result: MethodResult,
    look: tuple[str, str],
) -> None:
    recall = result.number(names.T2V_R1)
    trainable = result.value(names.TRAINABLE)
    assert recall is not None, "a row without recall"

    # A log axis has no 0: what tunes nothing is a line across.
    colour, marker = look
    if not trainable:
        axes.axhline(
            recall.mean,
            color=colour,
            ls="--",
            lw=1.4,
            label=f"{result.label}: nothing tuned",
        )
        return

    axes.errorbar(
        trainable,
        recall.mean,
        yerr=_whiskers(recall),
        color=colour,
        fmt=marker,
        ms=8,
        lw=1.4,
        capsize=3,
        label=result.label,
    )


def _draw_published(axes: Axes, row: PublishedRow) -> None:
    """Draw a paper's row, unless the paper does not say how much it tunes."""
    if not row.trainable:
        return

    position = (row.trainable, row.numbers["R1"])
    axes.plot(
        *position,
        "d",
        mfc="none",
        mec=FAINT,
        ms=7,
    )
    axes.annotate(
        row.paper,
        position,
        (6, -10),
        textcoords="offset points",
        color=FAINT,
        size=8,
    )


def _whiskers(number: SeedMean) -> list[list[float]]:
    """How far the 95% interval reaches below and above, within what a percentage can be."""
    low = number.mean
    if number.low is not None:
        low = max(number.low, 0)

    high = number.mean
    if number.high is not None:
        high = min(number.high, 100)

    below = number.mean - low
    above = high - number.mean
    return [[below], [above]]


def over_time(
    curves: Curves,
    ylabel: str,
    looks: Palette,
) -> str:
    """A line per run, against training steps."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.2 + _legend_height(len(curves)))
        for label, points in curves.items():
            colour, marker = looks[label]
            steps = [step for step, _ in points]
            values = [value for _, value in points]

            # Some six markers tell lines apart; one at each point would hide them.
            axes.plot(
                steps,
                values,
                color=colour,
                marker=marker,
                markevery=max(1, len(points) // 6),
                ms=5,
                lw=1.5,
                label=label,
            )

        axes.set(xlabel="step", ylabel=ylabel)
        _legend_below(figure)
        return _svg(figure)


def rank_histogram(ranks: Mapping[str, np.ndarray], looks: Palette) -> str:
    """Share of queries by the rank of the right video, a group of bars per range of ranks."""
    # Shares, not counts: methods may have been asked different numbers of queries.
    heights = {}
    for label, label_ranks in ranks.items():
        percents = []
        for low, high in BINS.values():
            in_bin = (label_ranks >= low) & (label_ranks < high)
            percents.append(100 * float(np.mean(in_bin)))
        heights[label] = percents

    return _bars(
        heights,
        list(BINS),
        xlabel="rank of the right video",
        ylabel="queries, %",
        looks=looks,
    )


def gain_over_full(results: Sequence[MethodResult], looks: Palette) -> str | None:
    """t2v R@1 minus that of full fine-tuning, per data set; None where `full` was not run beside another."""
    full_recalls = _full_recalls(results)
    others = []
    for result in results:
        if result.method != "full" and result.dataset in full_recalls:
            others.append(result)
    if not others:
        return None

    # NaN leaves a gap where a method was not run on a data set.
    datasets = sorted({result.dataset for result in others})
    heights = {label: [math.nan] * len(datasets) for label in labels(others)}
    for result in others:
        recall = result.value(names.T2V_R1) or 0
        column = datasets.index(result.dataset)
        heights[result.label][column] = recall - full_recalls[result.dataset]

    return _bars(
        heights,
        datasets,
        xlabel="",
        ylabel="R@1 above full, points",
        looks=looks,
    )


def _full_recalls(results: Sequence[MethodResult]) -> dict[str, float]:
    """t2v R@1 of full fine-tuning by data set; of several settings the first row of the table counts."""
    recalls: dict[str, float] = {}
    for result in results:
        if result.method == "full" and result.dataset not in recalls:
            recalls[result.dataset] = result.value(names.T2V_R1) or 0
    return recalls


def change_with_intervals(
    rows: Sequence[str],
    changes: Sequence[tuple[float, float, float]],
) -> str:
    """A row for each name: a change in points of R@1 and its 95% interval (change, low, high)."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(1.1 + 0.32 * len(rows))

        # The vertical axis goes up, so the first row comes last.
        for place, (change, low, high) in enumerate(reversed(changes)):
            below = change - low
            above = high - change
            axes.errorbar(
                change,
                place,
                xerr=[[below], [above]],
                color=_change_colour(low, high),
                fmt="o",
                ms=6,
                lw=1.6,
                capsize=3,
            )

        axes.axvline(0, color=INK, lw=0.9)
        axes.set_yticks(range(len(rows)), list(reversed(rows)))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("change of text to video R@1, points")
        axes.grid(visible=False, axis="y")
        return _svg(figure)


def _change_colour(low: float, high: float) -> str:
    """Faint where the interval holds 0: such a change may be chance."""
    if high < 0:
        return WORSE
    if low > 0:
        return BETTER
    return FAINT


def _bars(
    heights: Mapping[str, Sequence[float]],
    groups: Sequence[str],
    xlabel: str,
    ylabel: str,
    looks: Palette,
) -> str:
    """A group of bars for each of `groups`, in it a bar for each label."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.2 + _legend_height(len(heights)))

        # Groups are 1 apart and 0.8 wide, around their ticks.
        width = 0.8 / len(heights)
        group_starts = np.arange(len(groups)) - 0.4
        for place, (label, values) in enumerate(heights.items()):
            colour, _ = looks[label]
            positions = group_starts + width * (place + 0.5)
            axes.bar(
                positions,
                values,
                width * 0.92,
                color=colour,
                label=label,
            )

        axes.axhline(0, color=INK, lw=0.8)
        axes.grid(visible=False, axis="x")
        axes.set(
            xticks=range(len(groups)),
            xticklabels=groups,
            xlabel=xlabel,
            ylabel=ylabel,
        )
        _legend_below(figure)
        return _svg(figure)


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend_height(num_labels: int) -> float:
    """Inches that `_legend_below` takes."""
    return 0.2 * math.ceil(num_labels / 2)


def _legend_below(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=2)


def _svg(figure: Figure) -> str:
    # Without a date the same numbers give the same file.
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
