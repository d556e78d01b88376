"""Runs as they stand in MLflow, for reports."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow.entities import Run

from pipelines.track.results import ALL_METRICS
from pipelines.track.store import RunStore, StoreError, one_line
from vopcore.storage import scratch_folder

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TrackedRun:
    """What is known of one run: the last value of each metric, and times in seconds since 1970."""

    id: str
    name: str
    status: str
    started: float
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def runs(store: RunStore) -> list[TrackedRun]:
    """All runs of the experiment that are not deleted, oldest first. Raises StoreError."""
    if store.experiment_id is None:
        raise StoreError(f"{store.uri}: has not answered yet, so what it holds is not known")

    logged: list[Run] = []
    with one_line(store.uri):
        # MLflow answers by the page; the last one has no token for the next.
        page = store.client.search_runs([store.experiment_id])
        logged += page
        while page.token:
            page = store.client.search_runs(
                [store.experiment_id],
                page_token=page.token,
            )
            logged += page

    logged.sort(key=lambda run: run.info.start_time)
    return [_tracked(run) for run in logged]


def run(store: RunStore, run_id: str) -> TrackedRun:
    """One run of the store, of any of its experiments. Raises StoreError where there is none."""
    with one_line(store.uri):
        return _tracked(store.client.get_run(run_id))


def _tracked(run: Run) -> TrackedRun:
    return TrackedRun(
        id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        started=run.info.start_time / 1000,
        tags=run.data.tags,
        params=run.data.params,
        metrics=run.data.metrics,
    )


def pick(runs: Sequence[TrackedRun], word: str) -> TrackedRun:
    """The newest finished run that `word` names: its id, its method or the start of its name.

    Raises StoreError listing what there is.
    """
    # A kind has what is no run of a method: a report, a round of a benchmark.
    finished = []
    for run in runs:
        if run.status == "FINISHED" and "kind" not in run.tags:
            finished.append(run)

    # What names a run exactly comes before what names several.
    by_id = [run for run in finished if run.id == word]
    by_method = [run for run in finished if run.tags.get("method") == word]
    by_name = [run for run in finished if run.name.startswith(word)]
    for matches in (by_id, by_method, by_name):
        if matches:
            return matches[-1]

    run_names = [run.name for run in finished]
    listing = ", ".join(run_names) or "none"
    raise StoreError(f"no finished run {word!r}; there are: {listing}")


def splits(store: RunStore, run_id: str) -> dict[str, dict[str, int]]:
    """Of each split that went into a run, how many captions and videos; as `log_data` was told."""
    with one_line(store.uri):
        inputs = store.client.get_run(run_id).inputs
    if not inputs:
        return {}

    counts = {}
    for dataset_input in inputs.dataset_inputs:
        dataset = dataset_input.dataset
        _, _, split = dataset.digest.rpartition("-")
        counts[split] = json.loads(dataset.profile or "{}")

    # MLflow keeps no order.
    return {split: counts[split] for split in SPLITS if split in counts}


def with_all_metrics(store: RunStore, run: TrackedRun) -> TrackedRun:
    """The run with every number it measured, not only those that MLflow shows."""
    with scratch_folder() as folder:
        try:
            file = fetch(store, run.id, ALL_METRICS, folder)
            exact = json.loads(file.read_text())
        except (StoreError, ValueError):
            # A run of an older version, or a store whose artifacts are gone.
            return run

    metrics = {**run.metrics, **exact}
    return replace(run, metrics=metrics)


def curve(
    store: RunStore,
    run_id: str,
    metric: str,
) -> list[tuple[int, float]]:
    """(step, value) of a metric that was logged over time, by step."""
    with one_line(store.uri):
        history = store.client.get_metric_history(run_id, metric)

    # A step that was trained again after a restart stands there twice: its last value counts.
    value_at = {point.step: point.value for point in history}
    return sorted(value_at.items())


def fetch(
    store: RunStore,
    run_id: str,
    artifact: str,
    folder: Path,
) -> Path:
    """Copy an artifact of a run into `folder`; raises StoreError if it is not there."""
    with one_line(store.uri):
        path = store.client.download_artifacts(run_id, artifact, str(folder))
    return Path(path)
