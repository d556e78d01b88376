"""MLflow: one flat run per method and seed, found again by its key. The only importer of mlflow.

Every call names the store and the run: no global URI, no active run, so any process may log.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine unasked
PREDICTIONS = "predictions.parquet"  # a run's artifact, see vopcore/predictions.py
BATCH = 1000  # the most metrics MLflow takes at once


class StoreError(ValueError):
    """A store that cannot be read, or an experiment that is not in it; one line."""


@dataclass(frozen=True)
class Store:
    """Where the runs of one experiment are kept; plain text, so it travels to any process."""

    uri: str
    experiment_id: str
    experiment: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)


def open_store(uri: str | None, experiment: str, folder: Path) -> Store:
    """Open the store named in the config, else MLFLOW_TRACKING_URI, else a SQLite file in `folder`.

    Called once, on the driver, before any worker logs: several processes racing on a new SQLite file fail.
    """
    _quiet()
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        return Store(uri, found.experiment_id, experiment)
    artifacts = (folder / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
    return Store(uri, client.create_experiment(experiment, artifact_location=artifacts), experiment)


def find_store(uri: str, experiment: str) -> Store:
    """The store of an experiment that is there already; nothing is made. Raises StoreError."""
    _quiet()
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.is_file():
        raise StoreError(f"no MLflow store: {file} is missing; name yours with --uri")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a person is waiting
    with one_line(uri):
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return Store(uri, found.experiment_id, experiment)
        names = sorted(e.name for e in client.search_experiments() if e.name != "Default")
    raise StoreError(f"no experiment {experiment!r} in {uri}; there are: {', '.join(names) or 'none'}")


@dataclass(frozen=True)
class Run:
    """What is known of one run: the last value of each metric, and times in seconds since 1970."""

    id: str
    name: str
    status: str
    started: float
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def runs(store: Store) -> list[Run]:
    """All runs of the experiment that are not deleted, oldest first. Raises StoreError."""
    found, token = [], ""
    with one_line(store.uri):
        while token is not None:
            page = store.client.search_runs([store.experiment_id], page_token=token or None)
            found += page
            token = page.token or None
    return [
        Run(
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


def curve(store: Store, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric that was logged over time, by step."""
    with one_line(store.uri):
        history = store.client.get_metric_history(run_id, metric)
    return sorted({point.step: point.value for point in history}.items())


def fetch(store: Store, run_id: str, artifact: str, folder: Path) -> Path:
    """Copy an artifact of a run into `folder`; raises StoreError if it is not there."""
    with one_line(store.uri):
        return Path(store.client.download_artifacts(run_id, artifact, str(folder)))


@contextmanager
def one_line(uri: str) -> Iterator[None]:
    """What MLflow, its database and its files say at length, as a StoreError of one line."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = str(error).strip().splitlines()[0].replace("<database_uri>", uri)
        raise StoreError(f"MLflow at {uri}: {said}") from error


def start_run(store: Store, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Begin the run of `key`, or go on with the one that was begun before; returns its id."""
    client = store.client
    begun = client.search_runs([store.experiment_id], f"tags.run_key = '{key}'", max_results=1)
    if begun:
        run_id = begun[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run_name = f"{name} {datetime.now(UTC):%Y-%m-%d}"
        run = client.create_run(store.experiment_id, tags={"run_key": key, **tags}, run_name=run_name)
        run_id = run.info.run_id
    client.log_batch(run_id, params=[Param(k, str(v)) for k, v in params.items()])
    return run_id


def log_metrics(store: Store, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Log numbers of one moment."""
    log_curves(store, run_id, [(step, metrics)])


def log_curves(store: Store, run_id: str, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
    """Log (step, numbers) pairs."""
    now = int(time.time() * 1000)
    values = [Metric(k, float(v), now, step) for step, numbers in points for k, v in numbers.items()]
    for start in range(0, len(values), BATCH):
        store.client.log_batch(run_id, metrics=values[start : start + BATCH])


def log_files(store: Store, run_id: str, files: Iterable[Path], folder: str | None = None) -> None:
    """Keep files as artifacts of the run."""
    for file in files:
        store.client.log_artifact(run_id, str(file), folder)


def end_run(
    store: Store, run_id: str, status: str = "FINISHED", tags: Mapping[str, str] | None = None
) -> None:
    """Close the run as FINISHED, FAILED or KILLED."""
    if tags:
        store.client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])
    store.client.set_terminated(run_id, status)


def _quiet() -> None:
    for name in ("alembic", "mlflow"):  # a page of migration messages on a new store
        logging.getLogger(name).setLevel(logging.WARNING)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"video": {"frames": 12}}` as `{"video.frames": 12}`, the names runs are searched by."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
