"""Logging to MLflow: each call is delivered, or kept until MLflow takes it."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags

from pipelines.command.secrets import without_secrets
from pipelines.track.journal import Journal, waiting
from pipelines.track.model import upload_model, write_model
from pipelines.track.results import ALL_METRICS, CURVES, describe, shown_metrics
from pipelines.track.store import RunStore, ServerAwayError, StoreError, one_line, open_store
from vopcore.storage import scratch_folder

BATCH = 1000  # the most metrics MLflow takes at once
ADDRESS = "store.json"  # in the journal: where its calls were meant to go
KEPT = "kept-"  # before the key of a run that MLflow does not know yet
CONTEXT = {
    "train": "training",
    "val": "validation",
    "test": "testing",
}  # MLflow's words for splits

FULL: set[str] = set()  # journals that took no more, each said once

log = logging.getLogger(__name__)


def start_run(
    store: RunStore,
    key: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Begin the run of `key`, or go on with the one that was begun before; returns its id."""
    today = datetime.now(UTC)
    # with MLflow's own: user, script, commit
    all_tags = resolve_tags({**tags, "run_key": key})
    value = {
        "key": key,
        "name": f"{name} {today:%Y-%m-%d}",
        "params": _texts(params),
        "tags": without_secrets(all_tags),
    }

    # MLflow's id is not known while it is away; the key stands in for it until then.
    try:
        with one_line(store.uri):
            return _start(store.client, _experiment(store), value)
    except StoreError as error:
        _keep(
            store,
            KEPT + key,
            "start",
            value,
            error,
        )
        return KEPT + key


def log_metrics(
    store: RunStore,
    run_id: str,
    metrics: Mapping[str, float],
    step: int = 0,
) -> None:
    """Log numbers of one moment."""
    log_curves(store, run_id, [(step, metrics)])


def log_results(
    store: RunStore,
    run_id: str,
    metrics: Mapping[str, float],
    step: int = 0,
) -> None:
    """Log what a run measured: what matters as metrics, rounded, all of it in ALL_METRICS, and in words."""
    log_metrics(store, run_id, shown_metrics(metrics), step)

    exact = {name: float(number) for name, number in metrics.items()}
    text = json.dumps(exact, indent=1)
    _log_text(store, run_id, ALL_METRICS, text)
    _log(store, run_id, "describe", exact)


def log_training(
    store: RunStore,
    run_id: str,
    points: Sequence[tuple[int, Mapping[str, float]]],
) -> None:
    """Log the (step, numbers) pairs of an epoch: CURVES as metrics, the others as a file of JSON lines."""
    if not points:
        return

    shown = []
    lines = []
    for step, numbers in points:
        curves = {name: numbers[name] for name in CURVES if name in numbers}
        shown.append((step, curves))
        lines.append(json.dumps({"step": step, **numbers}) + "\n")
    log_curves(store, run_id, shown)

    # Named by its first step: an epoch that is trained again replaces its own file.
    first_step, _ = points[0]
    _log_text(
        store,
        run_id,
        f"from_step_{first_step:06}.jsonl",
        "".join(lines),
        "curves",
    )


def _log_text(
    store: RunStore,
    run_id: str,
    name: str,
    text: str,
    folder: str | None = None,
) -> None:
    # MLflow can take text itself, but a call that has to wait is kept with a file.
    with scratch_folder() as temporary:
        file = temporary / name
        file.write_text(text)
        log_files(store, run_id, [file], folder)


def log_curves(
    store: RunStore,
    run_id: str,
    points: Iterable[tuple[int, Mapping[str, float]]],
) -> None:
    """Log (step, numbers) pairs."""
    # The time of the call, not of its delivery: a call may wait for hours.
    milliseconds = int(time.time() * 1000)
    values = []
    for step, numbers in points:
        for name, number in numbers.items():
            values.append([name, float(number), milliseconds, step])
    _log(store, run_id, "metrics", values)


def log_files(
    store: RunStore,
    run_id: str,
    files: Iterable[Path],
    folder: str | None = None,
) -> None:
    """Keep files as artifacts of the run."""
    for file in files:
        value = {"path": str(file), "folder": folder}
        _log(store, run_id, "file", value)


def log_config(
    store: RunStore,
    run_id: str,
    file: Path,
) -> None:
    """Keep a YAML file as an artifact of the run, without the passwords in its URIs."""
    text = without_secrets(file.read_text())
    _log_text(store, run_id, file.name, text)


def log_model(
    store: RunStore,
    run_id: str,
    name: str,
    data: Path,
    example: Mapping[str, str],
    params: Mapping[str, Any],
) -> None:
    """Keep a folder of `tuned_model.save` as the model of the run; `example`: one row of its input."""
    with scratch_folder() as temporary:
        folder = temporary / "model"
        write_model(folder, data, example)

        value = {
            "path": str(folder),
            "name": name,
            "params": _texts(params),
        }
        _log(store, run_id, "model", value)


def log_data(
    store: RunStore,
    run_id: str,
    name: str,
    digest: str,
    source: str,
    splits: Mapping[str, Mapping[str, int]],
) -> None:
    """Say which data went in. splits: of each split, how many there are of what."""
    value = {
        "name": name,
        "digest": digest,
        "source": without_secrets(source),
        "splits": splits,
    }
    _log(store, run_id, "data", value)


def end_run(
    store: RunStore,
    run_id: str,
    status: str = "FINISHED",
    tags: Mapping[str, str] | None = None,
) -> None:
    """Close the run as FINISHED, FAILED or KILLED."""
    if tags is None:
        tags = {}
    value = {"status": status, "tags": _texts(tags)}
    _log(store, run_id, "end", value)


def deliver(store: RunStore) -> None:
    """Hand over all that is kept; raises StoreError, keeping the rest, where MLflow does not take it.

    Nothing stands twice in MLflow if a call is delivered again.
    """
    # Opened anew: the experiment may not have been there when the server was away.
    folder = Path(store.waiting_folder).parent
    opened = open_store(store.uri, store.experiment, folder)

    for run_id in waiting(store.waiting_folder):
        journal = Journal(store.waiting_folder, run_id)
        with one_line(store.uri):
            assert opened.experiment_id is not None, "a store that was opened has its experiment"
            _deliver_run(store.client, opened.experiment_id, run_id, journal)
        journal.clear()

    # Whoever keeps a call writes the address again.
    if not waiting(store.waiting_folder):
        address_file = Path(store.waiting_folder) / ADDRESS
        address_file.unlink(missing_ok=True)


def _deliver_run(
    client: MlflowClient,
    experiment_id: str,
    run_id: str,
    journal: Journal,
) -> None:
    mlflow_id = run_id
    for call, value in journal:
        # The calls that follow are for the run that MLflow makes now.
        if call == "start":
            mlflow_id = _start(client, experiment_id, value)
        else:
            CALLS[call](client, mlflow_id, value)


@contextmanager
def watch_machine(store: RunStore, run_id: str) -> Iterator[None]:
    """Log CPU, memory, disk, network and GPU of this machine under `system/` while the block runs."""
    # MLflow's monitor has no journal: where the run is not known yet, the machine goes unwatched.
    if run_id.startswith(KEPT):
        yield
        return

    seconds = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or 10
    monitor = SystemMetricsMonitor(
        run_id,
        seconds,
        resume_logging=True,
        tracking_uri=store.uri,
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"video": {"frames": 12}}` as `{"video.frames": 12}`, the names runs are searched by."""
    flat_settings: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat_settings |= flat(value, f"{name}.")
        else:
            flat_settings[name] = value
    return flat_settings


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The values as MLflow takes them: text, and none of it a password."""
    return {name: without_secrets(str(value)) for name, value in values.items()}


def _log(
    store: RunStore,
    run_id: str,
    call: str,
    value: Any,  # noqa: ANN401 - whatever JSON holds
) -> None:
    """Deliver a call; keep it where MLflow does not take it, or where calls before it are kept."""
    # The order of calls stays: none overtakes those that wait.
    if store.journal and not Journal(store.journal, run_id).is_empty:
        _add(store, run_id, call, value)
        return

    try:
        with one_line(store.uri):
            CALLS[call](store.client, run_id, value)
    except StoreError as error:
        _keep(
            store,
            run_id,
            call,
            value,
            error,
        )


def _keep(
    store: RunStore,
    run_id: str,
    call: str,
    value: Any,  # noqa: ANN401 - whatever JSON holds
    error: Exception,
) -> None:
    """Keep a call that failed and say so; without a journal the failure is the caller's."""
    if store.journal is None:
        raise error

    if _add(store, run_id, call, value):
        log.warning("%s; what it misses is kept in %s", error, store.waiting_folder)


def _add(
    store: RunStore,
    run_id: str,
    call: str,
    value: Any,  # noqa: ANN401 - whatever JSON holds
) -> bool:
    """Keep a call, and whom it is for; returns whether that worked, as no number is worth the run."""
    try:
        journal = Journal(store.waiting_folder, run_id)
        journal.add(call, value)

        address = {
            "uri": without_secrets(store.uri),
            "experiment": store.experiment,
        }
        address_file = Path(store.waiting_folder) / ADDRESS
        address_file.write_text(json.dumps(address))
    except OSError as error:
        # Most often one full disk, for the store and for this.
        if store.waiting_folder not in FULL:
            FULL.add(store.waiting_folder)
            log.warning(
                "%s: %s; what MLflow does not take from here on is lost",
                store.waiting_folder,
                error.strerror,
            )
        return False
    return True


def _experiment(store: RunStore) -> str:
    if store.experiment_id is None:
        raise ServerAwayError(f"MLflow at {store.uri} has never answered")
    return store.experiment_id


def _start(
    client: MlflowClient,
    experiment_id: str,
    value: Mapping[str, Any],
) -> str:
    """Find the run by its key, or make it; returns its id."""
    key_filter = f"tags.run_key = '{value['key']}'"
    matches = client.search_runs([experiment_id], key_filter, max_results=1)
    if matches:
        # A run that ended early goes on: its numbers follow those it has.
        run = matches[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        run = client.create_run(
            experiment_id,
            tags=value["tags"],
            run_name=value["name"],
        )

    # MLflow refuses a parameter that changes; what was logged first stays.
    new_params = []
    for name, text in value["params"].items():
        if name not in run.data.params:
            new_params.append(Param(name, text))
    client.log_batch(run.info.run_id, params=new_params)
    return run.info.run_id


def _metrics(
    client: MlflowClient,
    run_id: str,
    value: list[list[Any]],
) -> None:
    metrics = [Metric(*numbers) for numbers in value]
    for start in range(0, len(metrics), BATCH):
        batch = metrics[start : start + BATCH]
        client.log_batch(run_id, metrics=batch)


def _file(
    client: MlflowClient,
    run_id: str,
    value: Mapping[str, str],
) -> None:
    client.log_artifact(run_id, value["path"], value["folder"])


def _data(
    client: MlflowClient,
    run_id: str,
    value: Mapping[str, Any],
) -> None:
    source = json.dumps({"uri": value["source"]})

    inputs = []
    for split, counts in value["splits"].items():
        # MLflow tells data sets apart by name and digest: each split is one.
        dataset = Dataset(
            name=value["name"],
            digest=f"{value['digest']}-{split}",
            source_type="local",
            source=source,
            profile=json.dumps(counts),
        )
        context = InputTag("mlflow.data.context", CONTEXT[split])
        inputs.append(DatasetInput(dataset, [context]))
    client.log_inputs(run_id, inputs)


def _end(
    client: MlflowClient,
    run_id: str,
    value: Mapping[str, Any],
) -> None:
    tags = [RunTag(name, text) for name, text in value["tags"].items()]
    client.log_batch(run_id, tags=tags)
    client.set_terminated(run_id, value["status"])


CALLS: dict[str, Callable[[MlflowClient, str, Any], None]] = {
    "metrics": _metrics,
    "file": _file,
    "data": _data,
    "model": upload_model,
    "describe": describe,
    "end": _end,
}
