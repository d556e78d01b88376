"""Tables, plots and one page of what finished runs say, beside what the papers print."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import track
from pipelines.reports import plots, tables
from pipelines.reports.headline import headline
from pipelines.reports.page import ReportPlot, render
from pipelines.reports.published import SOURCES
from pipelines.reports.ranking import Predictions, Ranking, rank
from pipelines.reports.summary import LeftOut, MethodResult, summarize
from pipelines.reports.text import file_name
from pipelines.reports.transfer import Tested, Transfer, matrix_rows, transfers
from vopcore.metrics import names
from vopcore.storage import scratch_folder

MOST_POINTS = 300  # of a curve in a plot
MOST_REASONS = 5  # why there is nothing to show


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
        if self.first_plot is None:
            return list(self.plots)
        return [self.first_plot, *self.plots]


@dataclass(frozen=True)
class Sources:
    """Where the runs of a report are kept, by the id of the run."""

    stores: Mapping[str, track.RunStore]

    def curve(
        self,
        result: MethodResult,
        metric: str,
    ) -> list[tuple[int, float]] | None:
        """(step, value) of the first seed; None where there are no two points."""
        run = result.runs[0]
        if metric not in run.metrics:
            return None

        points = track.curve(self.stores[run.id], run.id, metric)
        if len(points) < 2:
            return None

        # A page of some megabytes shows no more than one of a few hundred points.
        every = max(1, len(points) // MOST_POINTS)
        return points[::every]

    def predictions(self, result: MethodResult) -> list[pa.Table]:
        """PREDICTIONS of each seed; none of all, and a word on stderr, where one is gone."""
        # Of a method whose seeds are half there, the mean over seeds would be another number.
        seed_tables = []
        for run in result.runs:
            try:
                table = self._predictions_of(run)
            except track.StoreError as error:
                print(
                    f"warning: {run.name} is left out of the rank histogram: {error}",
                    file=sys.stderr,
                )
                return []
            seed_tables.append(table)
        return seed_tables

    def transferred(self, result: MethodResult, config: str) -> list[pa.Table]:
        """PREDICTIONS of another config's test split, of each seed that has them still."""
        seed_tables = []
        for run in result.runs:
            with suppress(track.StoreError):
                table = self._predictions_of(run, f"{track.TRANSFERS}/{config}.parquet")
                seed_tables.append(table)
        return seed_tables

    def _predictions_of(
        self,
        run: track.TrackedRun,
        artifact: str = track.PREDICTIONS,
    ) -> pa.Table:
        """The columns that are compared; raises StoreError where the file is gone."""
        with scratch_folder() as folder:
            file = track.fetch(
                self.stores[run.id],
                run.id,
                artifact,
                folder,
            )
            return pq.read_table(file, columns=["caption", "video", "rank"])


def write_report(stores: Sequence[track.RunStore], out: Path) -> list[Path]:
    """Write everything about the experiments to `out`; the page comes first. Raises track.StoreError."""
    runs, sources = _read_runs(stores)
    results, left_out = summarize(runs)

    experiments = ", ".join(store.experiment for store in stores)
    if not results:
        reasons = [f"{left.run.name}: {left.why}" for left in left_out[:MOST_REASONS]]
        why = "; ".join(reasons) or "there are no runs"
        raise track.StoreError(f"nothing to show of {experiments} yet: {why}")

    # A method looks the same in every plot of the page.
    looks = plots.palette(results)

    rankings = {}
    sections = []
    datasets = sorted({result.dataset for result in results})
    for dataset in datasets:
        rows = [result for result in results if result.dataset == dataset]
        predictions = {result.label: sources.predictions(result) for result in rows}
        ranking = rank(rows, predictions)

        rankings[dataset] = ranking
        sections.append(
            _dataset(
                dataset,
                rows,
                ranking,
                sources,
                predictions,
                looks,
            )
        )

    # Several data sets are seen at a glance first; of one, the comparison with `full` comes last.
    across = _across(results, rankings, looks)
    if len(datasets) > 1:
        sections.insert(0, across)
    elif across.plots:
        sections.append(across)

    elsewhere = _elsewhere(results, sources)
    if elsewhere.tables:
        sections.append(elsewhere)

    page = _page(experiments, sections, results, left_out)
    return _write(out, page, sections, results)


def _read_runs(stores: Sequence[track.RunStore]) -> tuple[list[track.TrackedRun], Sources]:
    """The runs of methods, with all their numbers, and where each is kept."""
    runs = []
    store_of = {}
    for store in stores:
        for run in track.runs(store):
            # A kind has what is no run of a method: a report, a round of a benchmark.
            if "kind" in run.tags:
                continue
            runs.append(track.with_all_metrics(store, run))
            store_of[run.id] = store
    return runs, Sources(store_of)


def _page(
    experiments: str,
    sections: Sequence[ReportSection],
    results: Sequence[MethodResult],
    left_out: Sequence[LeftOut],
) -> str:
    now = datetime.now(UTC)
    return render(
        "report.html",
        title=f"Comparison: {experiments}",
        counted=_counted(results, left_out),
        written=f"{now:%Y-%m-%d %H:%M} UTC",
        sections=sections,
        left_out=left_out,
        sources=list(SOURCES.values()),
        backbones=", ".join(_backbones(results)),
        marks=tables.MARKS,
    )


def _backbones(results: Sequence[MethodResult]) -> list[str]:
    """The frozen CLIPs of all runs; of one that is a file, the name without its folder."""
    backbones = set()
    for result in results:
        for run in result.runs:
            backbone = run.tags.get("backbone", "?")
            backbones.add(Path(backbone).stem)
    return sorted(backbones)


def _across(
    results: Sequence[MethodResult],
    rankings: Mapping[str, Ranking],
    looks: plots.Palette,
) -> ReportSection:
    """What only shows beside other data sets, or beside full fine-tuning."""
    gain_plots = []
    gain = plots.gain_over_full(results, looks)
    if gain is not None:
        caption = "What each method finds more, or less, than full fine-tuning: t2v R@1, mean over seeds."
        gain_plots.append(ReportPlot("gain_over_full", caption, gain))

    if len(rankings) == 1:
        return ReportSection("Against full fine-tuning", [], gain_plots)
    overview = tables.overview(results, rankings)
    return ReportSection("All datasets", [overview], gain_plots)


def _elsewhere(results: Sequence[MethodResult], sources: Sources) -> ReportSection:
    """What each method finds of other configs' test splits, less the frozen CLIP; empty where none was
    searched.
    """
    tested = _tested_elsewhere(results, sources)
    if not tested:
        return ReportSection("Tested on other data", [], [])

    rows = transfers(tested)
    header, *lines = matrix_rows(rows)
    table = tables.TextTable("Tuned on, tested on", header, lines)
    compared = [row for row in rows if row.change is not None]
    if not compared:
        return ReportSection("Tested on other data", [table], [])

    plot = _changes_elsewhere(compared)
    return ReportSection("Tested on other data", [table], [], first_plot=plot)


def _changes_elsewhere(compared: Sequence[Transfer]) -> ReportPlot:
    """Each row's change from the frozen CLIP, with its interval."""
    shown = [f"{row.method}: {row.tuned_on} on {row.tested_on}" for row in compared]
    intervals = []
    for row in compared:
        interval = (row.change, row.low, row.high)
        change, low, high = [number for number in interval if number is not None]
        intervals.append((change, low, high))

    seen = [f"{name} {row.words}" for name, row in zip(shown, compared, strict=True)]
    return ReportPlot(
        "transfer",
        "Text to video R@1 on data that nothing was tuned on, less the frozen CLIP's, with its 95% interval.",
        plots.change_with_intervals(shown, intervals),
        seen="; ".join(seen) + ".",
    )


def _tested_elsewhere(results: Sequence[MethodResult], sources: Sources) -> list[Tested]:
    """Each method on each of the other test splits, with the frozen CLIP beside it."""
    tested = []
    for result in results:
        is_frozen = result.method == "zero_shot"
        frozen = _frozen_beside(result, results)
        for config in _searched_too(result):
            recall = result.value(names.transfer(config, names.T2V_R1))
            tables_of_frozen = []
            if frozen is not None and not is_frozen:
                tables_of_frozen = sources.transferred(frozen, config)
            tested.append(
                Tested(
                    result.label,
                    result.dataset,
                    config,
                    recall or 0.0,
                    sources.transferred(result, config),
                    tables_of_frozen,
                )
            )
    return tested


def _searched_too(result: MethodResult) -> list[str]:
    """The configs whose test splits were searched too."""
    configs: dict[str, None] = {}
    for run in result.runs:
        tested = [names.tested_on(metric) for metric in run.metrics]
        configs.update(dict.fromkeys(name for name in tested if name))
    return list(configs)


def _frozen_beside(
    result: MethodResult,
    results: Sequence[MethodResult],
) -> MethodResult | None:
    """The frozen CLIP on the same data, with as many frames; that of the same pooling first."""
    same = [other for other in results if other.method == "zero_shot" and _sees_the_same(other, result)]
    pooling = result.runs[0].params.get("method.pooling")
    same.sort(key=lambda other: other.runs[0].params.get("method.pooling") != pooling)
    return same[0] if same else None


def _sees_the_same(one: MethodResult, other: MethodResult) -> bool:
    """Whether two rows differ in the method alone; the runs of a row have the same data and frames."""
    one_run = one.runs[0]
    other_run = other.runs[0]
    if one_run.tags.get("data_hash") != other_run.tags.get("data_hash"):
        return False
    keys = ("video.frames", "video.sampler", "clip.model", "clip.pretrained")
    return all(one_run.params.get(key) == other_run.params.get(key) for key in keys)


def _dataset(
    dataset: str,
    results: Sequence[MethodResult],
    ranking: Ranking,
    sources: Sources,
    predictions: Predictions,
    looks: plots.Palette,
) -> ReportSection:
    """The section of one data set; predictions: by label, a table for each seed."""
    sentences = headline(dataset, results, ranking)
    name = file_name(dataset)
    recall_plot = ReportPlot(
        f"{name}_recall",
        "Text to video R@1 of each method with its 95% interval, best on top."
        " Hollow: the same experiment in a paper.",
        plots.recall_with_intervals(results, ranking, looks),
        seen=sentences,
    )

    parameter_plot = ReportPlot(
        f"{name}_parameters",
        "Recall against what is tuned. Whiskers: 95%. Hollow: the same experiment in a paper.",
        plots.recall_against_parameters(results, looks),
    )
    more_plots = [
        parameter_plot,
        *_curve_plots(dataset, name, results, sources, looks),
        *_rank_plots(dataset, name, predictions, looks),
    ]

    # The ranking is one by t2v R@1; it marks nothing in the other direction.
    t2v = tables.details(dataset, names.T2V, results, ranking)
    v2t = tables.details(dataset, names.V2T, results)
    return ReportSection(
        dataset,
        [t2v, v2t],
        more_plots,
        sentences,
        recall_plot,
    )


def _rank_plots(
    dataset: str,
    name: str,
    predictions: Predictions,
    looks: plots.Palette,
) -> list[ReportPlot]:
    """The histogram of ranks, where any method has its predictions still."""
    ranks_of = {}
    for label, seed_tables in predictions.items():
        if seed_tables:
            ranks_of[label] = seed_tables[0]["rank"].to_numpy()
    if not ranks_of:
        return []

    shares = []
    for label, ranks in ranks_of.items():
        percent = 100 * float((ranks == 1).mean())
        shares.append(f"{label} {percent:.0f}% at rank 1")

    plot = ReportPlot(
        f"{name}_ranks",
        f"Where the right video stands: share of captions by its rank, {_first_seed(dataset)}.",
        plots.rank_histogram(ranks_of, looks),
        seen=", ".join(shares) + ".",
    )
    return [plot]


def _first_seed(dataset: str) -> str:
    return f"of each method's first seed, {dataset}"


def _curve_plots(
    dataset: str,
    name: str,
    results: Sequence[MethodResult],
    sources: Sources,
    looks: plots.Palette,
) -> list[ReportPlot]:
    """Recall and loss while tuning, where they were logged."""
    seed = _first_seed(dataset)
    shown = [
        (names.VAL_T2V_R1, "val t2v R@1, %", f"Recall on the val split while tuning, {seed}."),
        (names.LOSS, "contrastive loss", f"Loss while tuning, {seed}."),
    ]

    curve_plots = []
    for metric, ylabel, caption in shown:
        curves = _curves(results, sources, metric)
        if not curves:
            continue

        last_values = []
        for label, points in curves.items():
            _, last_value = points[-1]
            last_values.append(f"{label} ends at {last_value:.3g}")

        metric_name = metric.replace("/", "_")
        plot = ReportPlot(
            f"{name}_{metric_name}",
            caption,
            plots.over_time(curves, ylabel, looks),
            seen=", ".join(last_values) + ".",
        )
        curve_plots.append(plot)
    return curve_plots


def _curves(
    results: Sequence[MethodResult],
    sources: Sources,
    metric: str,
) -> plots.Curves:
    """A curve for each method that logged the metric."""
    curves = {}
    for result in results:
        points = sources.curve(result, metric)
        if points is not None:
            curves[result.label] = points
    return curves


def _counted(results: Sequence[MethodResult], left_out: Sequence[LeftOut]) -> str:
    num_runs = sum(len(result.runs) for result in results)
    num_methods = len({result.label for result in results})
    counted = f"{num_runs} finished runs of {num_methods} methods"
    if left_out:
        counted += f", {len(left_out)} left out"
    return counted


def _write(
    out: Path,
    page: str,
    sections: Sequence[ReportSection],
    results: Sequence[MethodResult],
) -> list[Path]:
    """Write the files of the report; returns their paths, the page first."""
    shown = [table for section in sections for table in section.tables]
    texts = {
        "report.html": page,
        "report.md": _markdown(sections, shown),
        "report.csv": tables.comma_separated(results),
        "report.tex": "\n".join(tables.latex(table) for table in shown),
    }
    for section in sections:
        for plot in section.all_plots:
            texts[f"plots/{plot.name}.svg"] = plot.svg

    (out / "plots").mkdir(parents=True, exist_ok=True)
    files = []
    for name, text in texts.items():
        file = out / name
        file.write_text(text)
        files.append(file)
    return files


def _markdown(
    sections: Sequence[ReportSection],
    shown: Sequence[tables.TextTable],
) -> str:
    """What is said of each data set, then all tables."""
    paragraphs = [section.sentences for section in sections if section.sentences]
    for table in shown:
        paragraphs.append(f"### {table.title}\n\n{tables.markdown(table)}")
    return "\n\n".join(paragraphs)


def log_report(
    store: track.RunStore,
    files: Sequence[Path],
    out: Path,
) -> None:
    """Keep the report in MLflow, in place of the one before."""
    with track.one_line(store.uri):
        run_id = track.start_run(
            store,
            "report",
            "report",
            {},
            {"kind": "report"},
        )
        for file in files:
            # MLflow knows the top of a run's artifacts as None.
            folder = file.parent.relative_to(out).as_posix()
            artifact_folder = None if folder == "." else folder
            track.log_files(store, run_id, [file], artifact_folder)
        track.end_run(store, run_id)
