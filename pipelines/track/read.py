"""Runs as they stand in MLflow, for reports."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow.entities import Run

from pipelines.track.results import ALL_METRICS
from pipelines.track.store import RunStore, StoreError, one_line


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
    logged: list[Run] = []
    token: str | None = ""
    with one_line(store.uri):
        while token is not None:
            page = store.client.search_runs([store.experiment_id], page_token=token or None)
            logged += page
            token = page.token or None

    logged.sort(key=lambda run: run.info.start_time)
    return [_tracked(run) for run in logged]


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
    finished = [run for run in runs if run.status == "FINISHED" and "kind" not in run.tags]
    by_id = [run for run in finished if run.id == word]
    by_method = [run for run in finished if run.tags.get("method") == word]
    by_name = [run for run in finished if run.name.startswith(word)]
    for matches in (by_id, by_method, by_name):
        if matches:
            return matches[-1]

    names = ", ".join(run.name for run in finished) or "none"
    raise StoreError(f"no finished run {word!r}; there are: {names}")


def splits(store: RunStore, run_id: str) -> dict[str, dict[str, int]]:
    """Of each split that went into a run, how many captions and videos; as `log_data` was told."""
    with one_line(store.uri):
        inputs = store.client.get_run(run_id).inputs
    counts = {}
    for given in inputs.dataset_inputs if inputs else []:
        split = given.dataset.digest.rpartition("-")[2]
        counts[split] = json.loads(given.dataset.profile or "{}")
    return {split: counts[split] for split in ("train", "val", "test") if split in counts}


def with_all_metrics(store: RunStore, run: TrackedRun) -> TrackedRun:
    """The run with every number it measured, not only those that MLflow shows."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = fetch(store, run.id, ALL_METRICS, Path(folder))
            return replace(run, metrics={**run.metrics, **json.loads(file.read_text())})
        except (StoreError, ValueError):  # a run of an older version, or a store whose artifacts are gone
            return run


def curve(store: RunStore, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric that was logged over time, by step."""
    with one_line(store.uri):
        history = store.client.get_metric_history(run_id, metric)
    return sorted({point.step: point.value for point in history}.items())


def fetch(store: RunStore, run_id: str, artifact: str, folder: Path) -> Path:
    """Copy an artifact of a run into `folder`; raises StoreError if it is not there."""
    with one_line(store.uri):
        return Path(store.client.download_artifacts(run_id, artifact, str(folder)))
