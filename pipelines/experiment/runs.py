"""Tune the methods of a config one after the other, each an MLflow run, and print how they compare."""

import json
import platform
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import track
from pipelines.deliver import try_to_deliver
from pipelines.experiment.provenance import code_hash, code_version
from pipelines.tune.driver import RunFailedError, data_hash, run_key, tune
from pipelines.tune.worker import WEIGHTS, Task
from vopcore.config import MethodRun, RunConfig
from vopcore.tuned_model import ModelSettings, VideoVectors, save_model

COLUMNS = ("method", "trainable", "% of total", "t2v R@1", "v2t R@1", "seconds")


@dataclass(frozen=True)
class Comparison:
    """What the methods of one config share: data, frames, and where their numbers go."""

    config: RunConfig
    annotations: pa.Table
    data_hash: str  # of the annotations; reads every caption, so it is taken once
    shards: str
    source: Path  # the YAML file
    store: track.RunStore


def compare(config: RunConfig, annotations: pa.Table, shards: str, source: Path) -> list[dict[str, Any]]:
    """Tune and measure each method of `config` that is not finished; print the table; returns the results."""
    shared = comparison(config, annotations, shards, source)
    store = shared.store
    try:
        results = [best(shared, run) for run in config.methods]
    finally:
        try_to_deliver(store)
    print("\n" + table(results))
    print("\n  ".join(["\nCompare them in a browser:", *track.browse(store.uri, store.experiment_id)]))
    print(f"or on one page:\n  python pipelines/report.py {store.experiment} --uri {shlex.quote(store.uri)}")
    return results


def comparison(config: RunConfig, annotations: pa.Table, shards: str, source: Path) -> Comparison:
    """What the runs of `config` share; opens the MLflow store."""
    store = track.open_or_wait(
        config.mlflow.uri, config.mlflow.experiment or config.name, Path(config.output)
    )
    return Comparison(config, annotations, data_hash(annotations), shards, source, store)


def finished(shared: Comparison, run: MethodRun) -> dict[str, Any] | None:
    """What the run found, if it was finished before; of several learning rates, that of the best."""
    rates = run.train.lr if isinstance(run.train.lr, tuple) else (run.train.lr,)
    tried = [_result(shared, _with_rate(run, lr)) for lr in rates]
    found = [json.loads(file.read_text()) for file in tried if file.is_file()]
    return max(found, key=_on_val) if len(found) == len(rates) else None


def best(shared: Comparison, run: MethodRun) -> dict[str, Any]:
    """The run; where several learning rates are given, the one that finds most on the val split (t2v R@1)."""
    if isinstance(run.train.lr, float):
        return _one(shared, run)
    tried = []
    for lr in run.train.lr:
        tried.append(_one(shared, _with_rate(run, lr)))
        print(f"{run.name}: learning rate {lr:g}: val t2v R@1 {_on_val(tried[-1]):.1f}")
    kept = max(range(len(tried)), key=lambda number: _on_val(tried[number]))
    print(f"{run.name}: learning rate {run.train.lr[kept]:g} is kept")
    return tried[kept]


def _with_rate(run: MethodRun, lr: float) -> MethodRun:
    return run.model_copy(update={"train": run.train.model_copy(update={"lr": lr})})


def _on_val(result: dict[str, Any]) -> float:
    return result["metrics"].get("val/t2v/R1", 0.0)


def _result(shared: Comparison, run: MethodRun) -> Path:
    """The file of a run's numbers, there once it is finished; its predictions stand beside it."""
    key = run_key(shared.config, run, shared.data_hash, shared.shards)
    return Path(shared.config.output) / "results" / f"{key}.json"


def _one(shared: Comparison, run: MethodRun) -> dict[str, Any]:
    config, store = shared.config, shared.store
    file = _result(shared, run)
    key = file.stem
    if file.is_file():
        print(f"{run.name}: finished before ({key}); run=NAME tunes it anew")
        return json.loads(file.read_text())
    run_id = track.start_run(
        store, key, f"{run.name} seed {config.seed}", settings(config, run), tags(shared, run, key)
    )
    track.log_config(store, run_id, shared.source)
    log_data(shared, run_id)
    task = Task(config, run, shared.annotations, shared.shards)
    try:
        with track.watch_machine(store, run_id):
            done = tune(config, run, task, key, store, run_id)
    except RunFailedError as error:
        track.end_run(store, run_id, "FAILED", {"error": str(error)})
        raise
    except KeyboardInterrupt:
        track.end_run(store, run_id, "KILLED")
        raise
    track.log_metrics(store, run_id, done["metrics"], done["steps"])  # the curves end here
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(done["predictions"], file.with_suffix(".parquet"))
    _log_predictions(store, run_id, done["predictions"])
    with done["checkpoint"].as_directory() as folder:
        track.log_files(store, run_id, [Path(folder) / WEIGHTS], "tuned")
        track.end_run(store, run_id, tags=done["tags"])
        if config.mlflow.model != "none":  # last: a server that takes no models has the whole run
            _log_model(shared, run, run_id, Path(folder) / WEIGHTS, done.get("gallery"))
    result = {
        "method": run.name,
        "seed": config.seed,
        "key": key,
        "run_id": run_id,
        "metrics": done["metrics"],
    }
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1))
    partial.rename(file)
    return result


def _log_predictions(store: track.RunStore, run_id: str, predictions: pa.Table) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / track.PREDICTIONS
        pq.write_table(predictions, file)
        track.log_files(store, run_id, [file])


def _log_model(
    shared: Comparison, run: MethodRun, run_id: str, tuned: Path, gallery: VideoVectors | None
) -> None:
    """The tuned method, ready to be loaded anywhere."""
    config = shared.config
    model_settings = ModelSettings(
        **config.clip.model_dump(),
        **config.video.model_dump(include={"frames", "size", "sampler"}),
        stored_frames=config.video.kept,
        seed=config.seed,
        precision=run.train.precision,
    )
    caption = shared.annotations.filter(pc.equal(shared.annotations["split"], "test"))["caption"][0].as_py()
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "search", model_settings, tuned, gallery)
        params = settings(config, run)
        track.log_model(shared.store, run_id, run.name, Path(folder) / "search", {"caption": caption}, params)


def log_data(shared: Comparison, run_id: str) -> None:
    """Which data went in, split by split."""
    data, rows = shared.config.data, shared.annotations
    counts = rows.group_by("split").aggregate([("caption", "count"), ("video", "count_distinct")])
    track.log_data(
        shared.store,
        run_id,
        shared.config.name if data.dataset == "folder" else data.dataset,
        shared.data_hash,
        data.root,
        {
            row["split"]: {"captions": row["caption_count"], "videos": row["video_count_distinct"]}
            for row in counts.to_pylist()
        },
    )


def tags(shared: Comparison, run: MethodRun, key: str) -> dict[str, str]:
    """What runs are grouped and filtered by."""
    config, model = shared.config, shared.config.clip.model
    return {
        "benchmark": config.name,
        "dataset": config.data.dataset,
        "split": "test",
        "method": run.name,
        "seed": str(config.seed),
        "backbone": Path(model).stem if model.endswith(".json") else model,
        "checkpoint": "last epoch",
        "config_hash": key.rsplit("-", 1)[-1],
        "data_hash": shared.data_hash,
        "shards": shared.shards,
        "code_version": code_version(),
        "code_hash": code_hash(),
        "machine": platform.node(),
    }


def settings(config: RunConfig, run: MethodRun) -> dict[str, Any]:
    """Everything that was set, flat: `method.name`, `train.lr`, `video.frames`, ..."""
    shared = config.model_dump(mode="json", exclude={"methods", "stages"}, exclude_none=True)
    own = {
        "method": {"name": run.name, "pooling": run.pooling, **asdict(run.method)},
        "train": run.train.model_dump(),
    }
    return track.flat(shared | own)


def table(results: Sequence[dict[str, Any]]) -> str:
    """The comparison, a line per method."""
    rows = [COLUMNS]
    for result in results:
        m = result["metrics"]
        rows.append(
            (
                result["method"],
                f"{m['params/trainable']:,.0f}",
                f"{m['params/percent']:.3g}",
                f"{m['t2v/R1']:.1f}",
                f"{m['v2t/R1']:.1f}",
                f"{m['seconds/tune']:.0f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
