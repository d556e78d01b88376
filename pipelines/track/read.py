"""Runs as they stand in MLflow, for reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.track.store import RunStore, one_line


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
    found, token = [], ""
    with one_line(store.uri):
        while token is not None:
            page = store.client.search_runs([store.experiment_id], page_token=token or None)
            found += page
            token = page.token or None
    return [
        TrackedRun(
            id=run.info.run_id,
            name=run.info.run_name,
            status=run.info.status,
            started=run.info.start_time / 1000,
            tags=run.data.tags,
            params=run.data.params,
            metrics=run.data.metrics,
        )
        for run in sorted(found, key=lambda run: run.info.start_time)
    ]


def curve(store: RunStore, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric that was logged over time, by step."""
    with one_line(store.uri):
        history = store.client.get_metric_history(run_id, metric)
    return sorted({point.step: point.value for point in history}.items())


def fetch(store: RunStore, run_id: str, artifact: str, folder: Path) -> Path:
    """Copy an artifact of a run into `folder`; raises StoreError if it is not there."""
    with one_line(store.uri):
        return Path(store.client.download_artifacts(run_id, artifact, str(folder)))
