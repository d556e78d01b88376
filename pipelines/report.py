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

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import track
from pipelines.command.secrets import hides_secrets
from pipelines.reports import plots, tables
from pipelines.reports.headline import headline
from pipelines.reports.page import ReportPlot, render
from pipelines.reports.published import SOURCES
from pipelines.reports.ranking import Ranking, rank
from pipelines.reports.summary import LeftOut, MethodResult, summarize
from pipelines.reports.text import file_name

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
class ReportSection:
    """A section of the page: what it says first, its first picture, tables, and more pictures."""

    title: str
    tables: Sequence[tables.TextTable]
    plots: Sequence[ReportPlot]
    sentences: str = ""
    first_plot: ReportPlot | None = None

    @property
    def all_plots(self) -> list[ReportPlot]:
        return [*([self.first_plot] if self.first_plot else []), *self.plots]


@dataclass(frozen=True)
class Sources:
    """Where the runs of a report are kept, by the id of the run."""

    stores: Mapping[str, track.RunStore]

    def curve(self, result: MethodResult, metric: str) -> list[tuple[int, float]] | None:
        """(step, value) of the first seed; None where there are no two points."""
        run = result.runs[0]
        if metric not in run.metrics:
            return None
        points = track.curve(self.stores[run.id], run.id, metric)
        every = max(1, len(points) // MOST_POINTS)
        return points[::every] if len(points) > 1 else None

    def predictions(self, result: MethodResult) -> list[pa.Table]:
        """PREDICTIONS of each seed; none of all, and a word on stderr, where one is gone."""
        seed_tables = []
        for run in result.runs:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    file = track.fetch(self.stores[run.id], run.id, track.PREDICTIONS, Path(folder))
                except track.StoreError as error:
                    print(f"warning: {run.name} is left out of the rank histogram: {error}", file=sys.stderr)
                    return []
                seed_tables.append(pq.read_table(file, columns=["caption", "video", "rank"]))
        return seed_tables


def report(stores: Sequence[track.RunStore], out: Path) -> list[Path]:
    """Write everything about the experiments to `out`; the page comes first. Raises track.StoreError."""
    runs, sources = _read_runs(stores)
    results, left_out = summarize(runs)
    names = ", ".join(store.experiment for store in stores)
    if not results:
        why = "; ".join(f"{left.run.name}: {left.why}" for left in left_out[:5]) or "there are no runs"
        raise track.StoreError(f"nothing to show of {names} yet: {why}")

    looks = plots.palette(results)
    predictions = {(result.dataset, result.label): sources.predictions(result) for result in results}
    datasets = sorted({result.dataset for result in results})
    rankings = {}
    sections = []
    for dataset in datasets:
        rows = [result for result in results if result.dataset == dataset]
        tables_of = {result.label: predictions[dataset, result.label] for result in rows}
        rankings[dataset] = rank(rows, tables_of)
        sections.append(_dataset(dataset, rows, rankings[dataset], sources, tables_of, looks))

    across = _across(results, rankings, looks)
    if len(datasets) > 1:
        sections.insert(0, across)
    elif across.plots:
        sections.append(across)
    return _write(out, _page(names, sections, results, left_out), sections, results)


def _read_runs(stores: Sequence[track.RunStore]) -> tuple[list[track.TrackedRun], Sources]:
    """The runs of methods, with all their numbers, and where each is kept."""
    runs = []
    home = {}
    for store in stores:
        for run in track.runs(store):
            if "kind" in run.tags:  # a report, or a round of a benchmark
                continue
            runs.append(track.with_all_metrics(store, run))
            home[run.id] = store
    return runs, Sources(home)


def _page(
    names: str,
    sections: Sequence[ReportSection],
    results: Sequence[MethodResult],
    left_out: Sequence[LeftOut],
) -> str:
    backbones = {Path(run.tags.get("backbone", "?")).stem for result in results for run in result.runs}
    return render(
        "report.html",
        title=f"Comparison: {names}",
        counted=_counted(results, left_out),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        sections=sections,
        left_out=left_out,
        sources=list(SOURCES.values()),
        backbones=", ".join(sorted(backbones)),
        marks=tables.MARKS,
    )


def _across(
    results: Sequence[MethodResult], rankings: Mapping[str, Ranking], looks: plots.Palette
) -> ReportSection:
    """What only shows beside other data sets, or beside full fine-tuning."""
    is_alone = len(rankings) == 1
    gain = plots.gain_over_full(results, looks)
    caption = "What each method finds more, or less, than full fine-tuning: t2v R@1, mean over seeds."
    return ReportSection(
        "Against full fine-tuning" if is_alone else "All datasets",
        [] if is_alone else [tables.overview(results, rankings)],
        [ReportPlot("gain_over_full", caption, gain)] if gain else [],
    )


def _dataset(
    dataset: str,
    results: Sequence[MethodResult],
    ranking: Ranking,
    sources: Sources,
    predictions: Mapping[str, Sequence[pa.Table]],
    looks: plots.Palette,
) -> ReportSection:
    sentences = headline(dataset, results, ranking)
    name = file_name(dataset)
    first = ReportPlot(
        f"{name}_recall",
        "Text to video R@1 of each method with its 95% interval, best on top."
        " Hollow: the same experiment in a paper.",
        plots.recall_with_intervals(results, ranking, looks),
        seen=sentences,
    )
    more = [
        ReportPlot(
            f"{name}_parameters",
            "Recall against what is tuned. Whiskers: 95%. Hollow: the same experiment in a paper.",
            plots.recall_against_parameters(results, looks),
        ),
        *_curve_plots(dataset, name, results, sources, looks),
    ]

    ranks = {label: tables_[0]["rank"].to_numpy() for label, tables_ in predictions.items() if tables_}
    if ranks:
        caption = f"Where the right video stands: share of captions by its rank, {_first_seed(dataset)}."
        shares = {label: 100 * float((label_ranks == 1).mean()) for label, label_ranks in ranks.items()}
        seen = ", ".join(f"{label} {share:.0f}% at rank 1" for label, share in shares.items()) + "."
        more.append(ReportPlot(f"{name}_ranks", caption, plots.rank_histogram(ranks, looks), seen))

    t2v, v2t = (
        tables.details(dataset, direction, results, ranking if direction == "t2v" else None)
        for direction in tables.DIRECTIONS
    )
    return ReportSection(dataset, [t2v, v2t], more, sentences, first)


def _first_seed(dataset: str) -> str:
    return f"of each method's first seed, {dataset}"


def _curve_plots(
    dataset: str, name: str, results: Sequence[MethodResult], sources: Sources, looks: plots.Palette
) -> list[ReportPlot]:
    """Recall and loss while tuning, where they were logged."""
    drawn = []
    for metric, ylabel, caption in [
        ("val/t2v/R1", "val t2v R@1, %", f"Recall on the val split while tuning, {_first_seed(dataset)}."),
        ("train/loss", "contrastive loss", f"Loss while tuning, {_first_seed(dataset)}."),
    ]:
        curves = {result.label: sources.curve(result, metric) for result in results}
        curves = {label: points for label, points in curves.items() if points}
        if not curves:
            continue
        ends = ", ".join(f"{label} ends at {points[-1][1]:.3g}" for label, points in curves.items())
        svg = plots.over_time(curves, ylabel, looks)
        drawn.append(ReportPlot(f"{name}_{metric.replace('/', '_')}", caption, svg, seen=f"{ends}."))
    return drawn


def _counted(results: Sequence[MethodResult], left_out: Sequence[LeftOut]) -> str:
    num_runs = sum(len(result.runs) for result in results)
    left = f", {len(left_out)} left out" if left_out else ""
    return f"{num_runs} finished runs of {len({result.label for result in results})} methods{left}"


def _write(
    out: Path, page: str, sections: Sequence[ReportSection], results: Sequence[MethodResult]
) -> list[Path]:
    shown = [table for section in sections for table in section.tables]
    sentences = [section.sentences for section in sections if section.sentences]
    markdown = [*sentences, *(f"### {table.title}\n\n{tables.markdown(table)}" for table in shown)]
    texts = {
        "report.html": page,
        "report.md": "\n\n".join(markdown),
        "report.csv": tables.comma_separated(results),
        "report.tex": "\n".join(tables.latex(table) for table in shown),
    }
    for section in sections:
        for plot in section.all_plots:
            texts[f"plots/{plot.name}.svg"] = plot.svg

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
