"""What a night of runs says: tables, plots and one page of it all, beside what the papers print.

    python pipelines/report.py quickstart
    python pipelines/report.py msrvtt_9k didemo --uri http://mlflow:5000 --out reports/week47

Writes report.html, report.md, report.csv, report.tex and plots/*.svg, and logs them to MLflow as a run named
`report`. Exit codes: 0 done, 2 nothing to show: no such store or experiment, or no finished run in it.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout, also where another one is installed

import numpy as np
import pyarrow.parquet as pq

from pipelines import track
from pipelines.command.secrets import hides_secrets
from pipelines.reports import plots, tables
from pipelines.reports.page import data_uri, render
from pipelines.reports.published import SOURCES
from pipelines.reports.summary import LeftOut, MethodResult, summarize

CLI = argparse.ArgumentParser(
    prog="pipelines/report.py", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
)
CLI.add_argument(
    "experiments", nargs="+", metavar="EXPERIMENT", help="a name in MLflow; several are compared"
)
CLI.add_argument(
    "--uri", help="MLflow's store; default MLFLOW_TRACKING_URI, else outputs/EXPERIMENT/mlflow.db"
)
CLI.add_argument("--out", type=Path, help="folder to write to; default outputs/reports/EXPERIMENT")
MOST_POINTS = 300  # of a curve in a plot


@hides_secrets
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = CLI.parse_args(argv)
    out = args.out or Path("outputs/reports") / "+".join(args.experiments)
    try:
        stores = [track.find_store(store_uri(args.uri, name), name) for name in args.experiments]
        files = report(stores, out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for store in stores:
        try:
            log(store, files, out)
        except ValueError as error:
            print(f"warning: the report is written, but not logged: {error}", file=sys.stderr)
    print(f"Open {files[0].absolute().as_uri()}")
    return 0


def store_uri(uri: str | None, experiment: str) -> str:
    """Where a run of `experiment` keeps its numbers unless told otherwise."""
    return track.store_uri(uri, Path("outputs") / experiment)


@dataclass(frozen=True)
class ReportPlot:
    """A figure on the page, and the name of its file."""

    name: str
    caption: str
    svg: str

    @property
    def image(self) -> str:
        return data_uri(self.svg, "svg+xml")


@dataclass(frozen=True)
class ReportSection:
    """A section of the page."""

    title: str
    tables: Sequence[tables.TextTable]
    plots: Sequence[ReportPlot]


def report(stores: Sequence[track.RunStore], out: Path) -> list[Path]:
    """Write everything about the experiments to `out`; the page comes first. Raises track.StoreError."""
    found = [
        (track.with_all_metrics(store, run), store)
        for store in stores
        for run in track.runs(store)
        if "kind" not in run.tags
    ]
    home = {run.id: store for run, store in found}
    cells, left_out = summarize([run for run, _ in found])
    names = ", ".join(store.experiment for store in stores)
    if not cells:
        why = "; ".join(f"{left.run.name}: {left.why}" for left in left_out[:5]) or "there are no runs"
        raise track.StoreError(f"nothing to show of {names} yet: {why}")
    looks = plots.palette(cells)
    datasets = sorted({cell.dataset for cell in cells})
    across = _across(cells, looks, len(datasets))
    parts = [_dataset(dataset, cells, home, looks) for dataset in datasets]
    parts = [part for part in (across, *parts) if part.tables or part.plots]
    page = render(
        "report.html",
        title=f"Comparison: {names}",
        counted=_counted(cells, left_out),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        parts=parts,
        left_out=left_out,
        sources=list(SOURCES.values()),
        backbones=", ".join(
            sorted({Path(run.tags.get("backbone", "?")).stem for c in cells for run in c.runs})
        ),
    )
    return _write(out, page, parts, cells)


def _across(cells: Sequence[MethodResult], looks: plots.Palette, num_datasets: int) -> ReportSection:
    """What only shows beside other datasets, or beside full fine-tuning."""
    shown = [tables.overview(cells)] if num_datasets > 1 else []
    gain = plots.gain_over_full(cells, looks)
    caption = "What each method finds more, or less, than full fine-tuning: t2v R@1, mean over seeds."
    return ReportSection(
        "All datasets" if num_datasets > 1 else "Against full fine-tuning",
        shown,
        [ReportPlot("gain_over_full", caption, gain)] if gain else [],
    )


def _dataset(
    dataset: str, cells: Sequence[MethodResult], home: Mapping[str, track.RunStore], looks: plots.Palette
) -> ReportSection:
    own = [cell for cell in cells if cell.dataset == dataset]
    drawn = [
        ReportPlot(
            f"{dataset}_parameters",
            "Recall against what is trained. Whiskers: 95%. Hollow: published for this dataset.",
            plots.recall_against_parameters(dataset, cells, looks),
        )
    ]
    first = f"of each method's first seed, {dataset}"
    for metric, ylabel, caption in [
        ("val/t2v/R1", "val t2v R@1, %", f"Recall on the val split while tuning, {first}."),
        ("train/loss", "contrastive loss", f"Loss while tuning, {first}."),
    ]:
        curves = {cell.label: curve for cell in own if (curve := _curve(home, cell, metric))}
        if curves:
            name = f"{dataset}_{metric.replace('/', '_')}"
            drawn.append(ReportPlot(name, caption, plots.over_time(curves, ylabel, looks)))
    ranks = {cell.label: found for cell in own if (found := _ranks(home, cell)) is not None}
    if ranks:
        caption = f"Where the right video stands: share of captions by its rank, {first}."
        drawn.append(ReportPlot(f"{dataset}_ranks", caption, plots.rank_histogram(ranks, looks)))
    shown = [tables.details(dataset, direction, own) for direction in tables.DIRECTIONS]
    return ReportSection(dataset, shown, drawn)


def _curve(
    home: Mapping[str, track.RunStore], cell: MethodResult, metric: str
) -> list[tuple[int, float]] | None:
    run = cell.runs[0]
    points = track.curve(home[run.id], run.id, metric) if metric in run.metrics else []
    return points[:: max(1, len(points) // MOST_POINTS)] if len(points) > 1 else None


def _ranks(home: Mapping[str, track.RunStore], cell: MethodResult) -> np.ndarray | None:
    """The ranks of a run's captions; None, and a word on stderr, where its predictions are gone."""
    run = cell.runs[0]
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = track.fetch(home[run.id], run.id, track.PREDICTIONS, Path(folder))
        except track.StoreError as error:
            print(f"warning: {run.name} is left out of the rank histogram: {error}", file=sys.stderr)
            return None
        return pq.read_table(file, columns=["rank"])["rank"].to_numpy()


def _counted(cells: Sequence[MethodResult], left_out: Sequence[LeftOut]) -> str:
    num_runs = sum(len(cell.runs) for cell in cells)
    left = f", {len(left_out)} left out" if left_out else ""
    return f"{num_runs} finished runs of {len({cell.label for cell in cells})} methods{left}"


def _write(out: Path, page: str, parts: Sequence[ReportSection], cells: Sequence[MethodResult]) -> list[Path]:
    shown = [table for part in parts for table in part.tables]
    texts = {
        "report.html": page,
        "report.md": "\n".join(f"### {table.title}\n\n{tables.markdown(table)}" for table in shown),
        "report.csv": tables.comma_separated(cells),
        "report.tex": "\n".join(tables.latex(table) for table in shown),
    } | {f"plots/{plot.name}.svg": plot.svg for part in parts for plot in part.plots}
    (out / "plots").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text)
    return [out / name for name in texts]


def log(store: track.RunStore, files: Sequence[Path], out: Path) -> None:
    """Keep the report in MLflow, in place of the one before."""
    with track.one_line(store.uri):
        run_id = track.start_run(store, "report", "report", {}, {"kind": "report"})
        for file in files:
            folder = file.parent.relative_to(out).as_posix()
            track.log_files(store, run_id, [file], None if folder == "." else folder)
        track.end_run(store, run_id)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
