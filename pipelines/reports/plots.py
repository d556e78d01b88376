"""The plots of a report, as SVG text."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from pipelines.reports.summary import MethodResult, labels

Curves = Mapping[str, Sequence[tuple[int, float]]]  # label: (step, value)
Palette = Mapping[str, tuple[str, str]]  # label: colour and marker, the same in all plots

INK, FAINT = "#2b2f36", "#b8bec8"
COLOURS = ("#1f6feb", "#d1495b", "#2a9d6f", "#c77d0a", "#7b4fbf", "#0f8b8d", "#a3476f", "#5c6b1f", "#475569")
MARKERS = "osD^vP"
STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e7eaef",
    "legend.frameon": False,
    "svg.hashsalt": "vopcore",  # the same numbers, the same file
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
BINS = {"1": (1, 1.5), "2–5": (1.5, 5.5), "6–10": (5.5, 10.5), "11–50": (10.5, 50.5), ">50": (50.5, np.inf)}


def palette(cells: Sequence[MethodResult]) -> Palette:
    """A look for each label: nine colours, then their lighter shades with another marker, and so on."""
    looks = []
    for round_, marker in enumerate(MARKERS):
        paler = 0.45 * (round_ % 2)
        looks += [(to_hex([c + (1 - c) * paler for c in to_rgb(colour)]), marker) for colour in COLOURS]
    return {label: looks[place % len(looks)] for place, label in enumerate(labels(cells))}


def recall_against_parameters(dataset: str, cells: Sequence[MethodResult], looks: Palette) -> str:
    """t2v R@1 against trainable parameters, the papers' figure: ours filled, published hollow."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(8, 4.6)
        own = [cell for cell in cells if cell.dataset == dataset]
        for cell in own:
            _point(axes, cell, *looks[cell.label])
        for row in (row for cell in own for row in cell.published("t2v")):
            if row.trainable and "R1" in row.numbers:
                at = (row.trainable, row.numbers["R1"])
                axes.plot(*at, "o", mfc="none", mec=FAINT, ms=7)
                axes.annotate(
                    f"{row.method} {row.paper}",
                    at,
                    (6, -9),
                    textcoords="offset points",
                    color="#8a919c",
                    size=7,
                )
        axes.set(xscale="log", xlabel="trainable parameters", ylabel="text to video R@1, %")
        if all(not cell.value("params/trainable") for cell in own):
            axes.set_xlim(1e3, 1e9)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return _svg(figure)


def _point(axes: Axes, cell: MethodResult, colour: str, marker: str) -> None:
    recall, trainable = cell.number("t2v/R1"), cell.value("params/trainable")
    assert recall is not None, "a cell without recall"
    if not trainable:  # a log axis has no 0
        axes.axhline(recall.mean, color=colour, ls="--", lw=1.2, label=f"{cell.label}: nothing trained")
        return
    low = recall.mean if recall.low is None else max(recall.low, 0)
    high = recall.mean if recall.high is None else min(recall.high, 100)
    error = [[recall.mean - low], [high - recall.mean]]
    axes.errorbar(
        trainable, recall.mean, error, color=colour, fmt=marker, ms=8, lw=1.2, capsize=3, label=cell.label
    )


def over_time(curves: Curves, ylabel: str, looks: Palette) -> str:
    """A line per run, against training steps."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(8, 3.6)
        for label, points in curves.items():
            marker = "o" if len(points) < 30 else None
            axes.plot(
                *zip(*points, strict=True), color=looks[label][0], marker=marker, ms=4, lw=1.4, label=label
            )
        axes.set(xlabel="step", ylabel=ylabel)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return _svg(figure)


def rank_histogram(ranks: Mapping[str, np.ndarray], looks: Palette) -> str:
    """Share of queries by the rank of the right video, a group of bars per range of ranks."""
    heights = {
        label: [100 * float(np.mean((own >= low) & (own < high))) for low, high in BINS.values()]
        for label, own in ranks.items()
    }
    return _bars(heights, list(BINS), "rank of the right video", "queries, %", looks)


def gain_over_full(cells: Sequence[MethodResult], looks: Palette) -> str | None:
    """t2v R@1 minus that of full fine-tuning, per dataset; None where `full` was not run beside another."""
    full = {cell.dataset: cell.value("t2v/R1") for cell in reversed(cells) if cell.method == "full"}
    others = [cell for cell in cells if cell.method != "full" and cell.dataset in full]
    if not others:
        return None
    datasets = sorted({cell.dataset for cell in others})
    heights = {label: [float("nan")] * len(datasets) for label in labels(others)}
    for cell in others:
        heights[cell.label][datasets.index(cell.dataset)] = cell.value("t2v/R1") - full[cell.dataset]
    return _bars(heights, datasets, "", "R@1 above full fine-tuning, points", looks)


def _bars(
    heights: Mapping[str, Sequence[float]], groups: Sequence[str], xlabel: str, ylabel: str, looks: Palette
) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(8, 3.6)
        width = 0.8 / len(heights)
        for place, (label, own) in enumerate(heights.items()):
            at = np.arange(len(groups)) - 0.4 + width * (place + 0.5)
            axes.bar(at, own, width * 0.92, color=looks[label][0], label=label)
        axes.axhline(0, color=INK, lw=0.8)
        axes.grid(visible=False, axis="x")
        axes.set(xticks=range(len(groups)), xticklabels=groups, xlabel=xlabel, ylabel=ylabel)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return _svg(figure)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
