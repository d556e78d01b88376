"""Tune the methods of a config one after the other, each an MLflow run, and print how they compare."""

import logging
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines import track
from pipelines.cluster import machines
from pipelines.cluster.start import start_ray
from pipelines.experiment import prepare
from pipelines.experiment.identity import run_key, search_key
from pipelines.experiment.kept_output import KeptOutput, kept_output
from pipelines.experiment.prepare import DecodedData
from pipelines.experiment.provenance import code_hash, code_version
from pipelines.experiment.results import (
    ResultFiles,
    RunResult,
    clear_unlogged,
    log_result,
)
from pipelines.tune.driver import RunFailedError, tune_on_ray
from pipelines.tune.search_rate import FoundRate, search_rate
from pipelines.tune.worker import Task
from vopcore.config import MethodRun, RunConfig, searches
from vopcore.metrics import names
from vopcore.storage import Store, below

COLUMNS = ("method", "trainable", "% of total", "t2v R@1", "v2t R@1", "seconds")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """What the runs of one config share: data, frames, and where their numbers go.

    source: the YAML file; store: MLflow's.
    """

    data: DecodedData
    source: Path
    store: track.RunStore

    @property
    def config(self) -> RunConfig:
        return self.data.config


def run_experiment(config: RunConfig, source: Path) -> None:
    """Ingest, tune and measure what `config` says; `source` is the file it was read from."""
    prepare.check(config)
    with kept_output(config.output) as kept:
        config = kept.placed(config)
        prepare.check_output(config)  # once more: it may have come from a bucket
        preparation = prepare.prepared(config)

        with kept.said():
            start_ray(config)
            machines.check_machines(config)
            machines.check_shared(config)
            data = prepare.decoded(preparation)

            if "tune" in config.stages:
                machines.wait_for_machines(config.resources)
                # those that have come in the meantime too
                machines.check_shared(config)
                run_methods(open_experiment(data, source), kept)


def open_experiment(data: DecodedData, source: Path) -> Experiment:
    """The experiment of a config's decoded data; opens its MLflow store."""
    config = data.config
    experiment = config.mlflow.experiment or config.name
    store = track.open_or_wait(config.mlflow.uri, experiment, Path(config.output))
    return Experiment(data, source, store)


def run_methods(experiment: Experiment, kept: KeptOutput) -> list[RunResult]:
    """Tune and measure each method that is not finished, keep what it found, and print the table."""
    store = experiment.store
    results = []
    try:
        for run in experiment.config.methods:
            results.append(run_method(experiment, run))
            kept.keep()
    finally:
        try_to_deliver(store)

    print("\n" + table(results))
    print_coverage(results)
    print_where_to_look(store, [store.experiment], kept)

    # the quickstart shows what comes next
    if experiment.config.shapes is not None:
        commands = search_commands(experiment, results)
        print("\n  ".join(["\nSearch the videos with what was tuned:", *commands]))
    return results


def search_commands(
    experiment: Experiment,
    results: list[RunResult],
) -> list[str]:
    """How to index the videos of the run with the best recall, and how to open them in a browser."""
    config = experiment.config
    best = max(results, key=lambda result: result.metrics.get(names.T2V_R1, 0.0))
    videos = config.data.videos_place
    index = f"{config.output}/index"

    overrides = [
        f"model=runs:/{best.run_id}/{best.method}",
        f"mlflow_uri={experiment.store.uri}",
        f"index={index}",
    ]
    options = shlex.join(overrides)
    return [
        f"python pipelines/index.py {shlex.quote(videos)} {options}",
        f"python pipelines/serve.py {shlex.quote(index)}",
    ]


def finished(experiment: Experiment, run: MethodRun) -> RunResult | None:
    """What the run found, if nothing is left to do; of several learning rates, the best one's."""
    results = []
    for single in _single_rates(run):
        files = result_files(experiment, single)
        is_measured = files.numbers.is_file()
        is_logged = not files.unlogged.is_dir()
        if not is_measured or not is_logged:
            return None
        results.append(RunResult.read(files.numbers))
    return max(results, key=_val_recall)


def run_method(experiment: Experiment, run: MethodRun) -> RunResult:
    """Tune and measure a method; of several learning rates the one is kept that finds most on the val split
    (t2v R@1).
    """
    single_rates = _single_rates(run)
    is_search = len(single_rates) > 1
    results = []
    recalls = []
    for single in single_rates:
        result = _run_single(experiment, single)
        recall = _val_recall(result)
        results.append(result)
        recalls.append(recall)
        if is_search:
            print(f"{run.name}: learning rate {single.train.lr:g}: val t2v R@1 {recall:.1f}")

    # of equal ones the first, in the order of the config
    best = recalls.index(max(recalls))
    if is_search:
        print(f"{run.name}: learning rate {single_rates[best].train.lr:g} is kept")
    return results[best]


def result_files(experiment: Experiment, run: MethodRun) -> ResultFiles:
    """Where the results of a run with one learning rate are, once it is finished."""
    data = experiment.data
    others = [(other.name, other.data_hash, other.decode_hash) for other in data.others]
    key = run_key(
        data.config,
        run,
        data.data_hash,
        data.shards,
        data.decode_hash,
        others,
    )
    folder = Path(data.config.output) / "results"
    return ResultFiles(folder, key)


def _single_rates(run: MethodRun) -> list[MethodRun]:
    """The run once for each learning rate it is to be tried with."""
    rates = run.train.lr
    if not isinstance(rates, tuple):
        return [run]
    return [_at_rate(run, rate) for rate in rates]


def _at_rate(run: MethodRun, rate: float) -> MethodRun:
    """The run with this learning rate, whatever it was to be tried with."""
    train = run.train.model_copy(update={"lr": rate})
    return run.model_copy(update={"train": train})


def _task(experiment: Experiment, run: MethodRun) -> Task:
    """What the workers of a run need to know."""
    data = experiment.data
    distill = run.train.distill
    teacher = None
    if distill is not None:
        teacher = data.teachers[distill.teacher]
    return Task(
        data.config,
        run,
        data.annotations,
        data.shards,
        data.others,
        teacher=teacher,
    )


def _val_recall(result: RunResult) -> float:
    return result.metrics.get(names.VAL_T2V_R1, 0.0)


def _run_single(experiment: Experiment, run: MethodRun) -> RunResult:
    config = experiment.config
    files = result_files(experiment, run)
    if files.numbers.is_file():
        print(f"{run.name}: finished before ({files.key}); run=NAME tunes it anew")
        result = RunResult.read(files.numbers)
        rate = result.metrics.get(names.FOUND_RATE)
        _log(experiment, run if rate is None else _at_rate(run, rate), files, result)
        return result

    found = None
    if searches(run):
        found = _search(experiment, run)
        run = _at_rate(run, found.rate)

    run_id = _start_run(experiment, run, files.key)
    task = _task(experiment, run)
    try:
        with track.watch_machine(experiment.store, run_id):
            measured, checkpoint = tune_on_ray(
                config,
                run,
                task,
                files.key,
                experiment.store,
                run_id,
            )
    except RunFailedError as error:
        reason = {"error": str(error)}
        track.end_run(experiment.store, run_id, "FAILED", reason)
        raise
    except KeyboardInterrupt:
        track.end_run(experiment.store, run_id, "KILLED")
        raise

    # the results first: nothing that follows can lose them
    metrics = measured.metrics
    if found is not None:
        metrics = metrics | found.metrics
        Store(files.folder).write(files.search.name, found.as_csv().encode())
    result = RunResult(
        run.name,
        config.seed,
        files.key,
        run_id,
        metrics,
    )
    files.write(result, measured, checkpoint)
    _log(experiment, run, files, result)
    return result


def _search(experiment: Experiment, run: MethodRun) -> FoundRate:
    """The learning rate of a run that is to find its own; at once where the same search has ended before."""
    config = experiment.config
    data = experiment.data
    key = search_key(
        config,
        run,
        data.data_hash,
        data.shards,
        data.decode_hash,
    )
    folder = Store(below(config.storage or config.output, "searches")).child(key)
    return search_rate(_task(experiment, run), folder)


def _start_run(
    experiment: Experiment,
    run: MethodRun,
    key: str,
) -> str:
    """Begin or go on with the MLflow run of `key`; returns its id."""
    store = experiment.store
    name = f"{run.name} seed {experiment.config.seed}"
    run_id = track.start_run(
        store,
        key,
        name,
        settings(experiment.config, run),
        tags(experiment, run, key),
    )
    track.log_config(store, run_id, experiment.source)
    log_data(experiment, run_id)
    return run_id


def _log(
    experiment: Experiment,
    run: MethodRun,
    files: ResultFiles,
    result: RunResult,
) -> None:
    """Bring to MLflow what of a finished run is not there yet; what fails is a warning, and can be tried
    again.
    """
    if not files.unlogged.is_dir():
        return
    try:
        log_result(
            experiment.data,
            experiment.store,
            run,
            files,
            result,
            settings(experiment.config, run),
        )
    except Exception as error:
        # whatever it is: the run is finished, and its numbers are safe
        reason = str(error).strip().splitlines() or [""]
        log.warning(
            "%s: its numbers are in %s, but not all of it is in MLflow (%s: %s); run it again to complete it",
            run.name,
            files.numbers,
            type(error).__name__,
            reason[0],
        )
        return
    clear_unlogged(files)


def log_data(experiment: Experiment, run_id: str) -> None:
    """Which data went in, split by split."""
    data = experiment.config.data
    rows = experiment.data.annotations
    counted = [("caption", "count"), ("video", "count_distinct")]
    counts = rows.group_by("split").aggregate(counted)
    splits = {}
    for row in counts.to_pylist():
        splits[row["split"]] = {
            "captions": row["caption_count"],
            "videos": row["video_count_distinct"],
        }

    # every folder of one's own is of the dataset `folder`: only the config tells them apart
    name = data.dataset
    if name == "folder":
        name = experiment.config.name
    track.log_data(
        experiment.store,
        run_id,
        name,
        experiment.data.data_hash,
        data.root,
        splits,
    )


def tags(
    experiment: Experiment,
    run: MethodRun,
    key: str,
) -> dict[str, str]:
    """What runs are grouped and filtered by."""
    config = experiment.config
    model = config.clip.model

    # a model config of one's own goes by the name of its file
    if model.endswith(".json"):
        model = Path(model).stem
    return {
        "benchmark": config.name,
        "dataset": config.data.dataset,
        "split": "test",
        "method": run.name,
        "seed": str(config.seed),
        "backbone": model,
        "checkpoint": "last epoch",
        "config_hash": key.rsplit("-", 1)[-1],
        "data_hash": experiment.data.data_hash,
        "shards": experiment.data.shards,
        "code_version": code_version(),
        "code_hash": code_hash(),
        "machine": platform.node(),
    }


def settings(config: RunConfig, run: MethodRun) -> dict[str, Any]:
    """Everything that was set, flat: `method.name`, `train.lr`, `video.frames`, ..."""
    shared = config.model_dump(
        mode="json",
        exclude={"methods", "stages"},
        exclude_none=True,
    )
    shared["video"]["size"] = config.video.side

    method = {
        "name": run.name,
        "pooling": run.pooling,
        **asdict(run.method),
    }
    # left out where nothing is merged, as in the runs from before there was merging
    if run.merge:
        method["merge"] = run.merge

    # a run whose rate is known has nothing to look for
    train = run.train.model_dump(exclude=None if searches(run) else {"search"})
    return track.flat(shared | {"method": method, "train": train})


def table(results: Sequence[RunResult]) -> str:
    """The comparison, a line per method.

    kept: percent of stills whose caption the quickstart's CLIP still finds; one column for each other config
    whose test split was searched too.
    """
    more_columns = _more_columns(results)
    rows = [(*COLUMNS, *more_columns)]
    for result in results:
        metrics = result.metrics
        more = []
        for name in more_columns.values():
            more.append(f"{metrics[name]:.1f}" if name in metrics else "")

        rows.append(
            (
                result.method,
                f"{metrics[names.TRAINABLE]:,.0f}",
                f"{metrics[names.TRAINABLE_PERCENT]:.3g}",
                f"{metrics[names.T2V_R1]:.1f}",
                f"{metrics[names.V2T_R1]:.1f}",
                f"{metrics[names.TUNING_SECONDS]:.0f}",
                *more,
            )
        )

    columns = zip(*rows, strict=True)
    name_width, *widths = [max(map(len, column)) for column in columns]
    lines = []
    for name, *numbers in rows:
        cells = [name.ljust(name_width)]
        for number, width in zip(numbers, widths, strict=True):
            cells.append(number.rjust(width))
        lines.append("  ".join(cells))

    header, *body = lines
    rule = "-" * len(header)
    return "\n".join([header, rule, *body])


def _more_columns(results: Sequence[RunResult]) -> dict[str, str]:
    """What only some configs measure: the metric of each column."""
    measured: dict[str, None] = {}
    for result in results:
        measured.update(dict.fromkeys(result.metrics))

    columns = {}
    for metric in measured:
        other_data = names.tested_on(metric)
        if metric == names.UPSTREAM_R1:
            columns["kept"] = metric
        elif other_data:
            columns[f"{other_data} t2v R@1"] = metric
    return columns


def print_coverage(results: Sequence[RunResult]) -> None:
    """Where videos of the test split were not found: how many, and what recall can reach at most."""
    # All methods are measured on the same videos, but those that finished before may have had fewer.
    lines = {coverage(result.metrics): None for result in results}
    for line in lines:
        if line:
            print(line)


def coverage(metrics: Mapping[str, float]) -> str | None:
    """`test: 10 of 4,917 videos found; R@1 cannot exceed 0.2`; None where all were found."""
    found = metrics[names.GALLERY_FOUND]
    expected = metrics[names.GALLERY_EXPECTED]
    if found == expected:
        return None

    # a query whose video is not found is never a hit
    num_queries_found = metrics[names.QUERIES_FOUND]
    most = 100 * num_queries_found / metrics[names.QUERIES_EXPECTED]
    return f"test: {found:,.0f} of {expected:,.0f} videos found; R@1 cannot exceed {most:.1f}"


def print_where_to_look(
    store: track.RunStore,
    experiments: Sequence[str],
    kept: KeptOutput,
) -> None:
    """How to see the results in a browser and on one page, from where the command was typed."""
    is_server = store.uri.startswith("http")
    lines = track.browse(store.uri, store.experiment_id)
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if is_job and not is_server:
        # A job runs on the head: its port has to come to the laptop, and the shell there has no environment.
        programs = Path(sys.executable).parent
        first, *others = lines
        lines = [
            f"ray attach cluster.yaml -p {track.PORT}",
            f"{programs}/{first}",
            *others,
        ]

    print("\n  ".join(["\nCompare them in a browser:", *lines]))
    command = report_command(experiments, kept.address_of(store.uri))
    print(f"or on one page:\n  {command}")


def report_command(experiments: Sequence[str], uri: str) -> str:
    """What to type for one page about `experiments`, for a shell."""
    return shlex.join(["python", "pipelines/report.py", *experiments, "--uri", uri])


def try_to_deliver(store: track.RunStore) -> None:
    """Hand over to MLflow what it did not take during a run, else say how to do it later."""
    if not track.waiting(store.waiting_folder):
        return
    try:
        track.deliver(store)
    except track.StoreError as error:
        command = shlex.join(["python", "pipelines/deliver.py", store.waiting_folder])
        print(f"\n{error}\nWhat it has not got is kept; when it is back:\n  {command}")
