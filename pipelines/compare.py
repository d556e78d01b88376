"""Tune the methods of a config one after the other, each an MLflow run, and print how they compare."""

import json
import platform
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
from pipelines.provenance import code_version
from pipelines.tune import RunFailedError, data_hash, run_key, tune
from pipelines.work import WEIGHTS, Task
from vopcore import search
from vopcore.config import MethodRun, RunConfig
from vopcore.search import Gallery, Reading

COLUMNS = ("method", "trainable", "% of total", "t2v R@1", "v2t R@1", "seconds")


@dataclass(frozen=True)
class Comparison:
    """What the methods of one config share: data, frames, and where their numbers go."""

    config: RunConfig
    annotations: pa.Table
    data_hash: str  # of the annotations; reads every caption, so it is taken once
    shards: str
    source: Path  # the YAML file
    store: track.Store


def compare(config: RunConfig, annotations: pa.Table, shards: str, source: Path) -> list[dict[str, Any]]:
    """Tune and measure each method of `config` that is not finished; print the table; returns the results."""
    store = track.open_or_wait(
        config.mlflow.uri, config.mlflow.experiment or config.name, Path(config.output)
    )
    shared = Comparison(config, annotations, data_hash(annotations), shards, source, store)
    try:
        results = [_best(shared, run) for run in config.methods]
    finally:
        try_to_deliver(store)
    print("\n" + table(results))
    print("\n  ".join(["\nCompare them in a browser:", *track.browse(store.uri, store.experiment_id)]))
    print(f"or on one page:\n  python pipelines/report.py {store.experiment} --uri {store.uri}")
    return results


def _best(shared: Comparison, run: MethodRun) -> dict[str, Any]:
    """The run; where several learning rates are given, the one that finds most on the val split (t2v R@1)."""
    if isinstance(run.train.lr, float):
        return _one(shared, run)
    tried = []
    for lr in run.train.lr:
        candidate = run.model_copy(update={"train": run.train.model_copy(update={"lr": lr})})
        tried.append((lr, _one(shared, candidate)))
        print(f"{run.name}: learning rate {lr:g}: val t2v R@1 {tried[-1][1]['metrics']['val/t2v/R1']:.1f}")
    lr, best = max(tried, key=lambda pair: pair[1]["metrics"]["val/t2v/R1"])
    print(f"{run.name}: learning rate {lr:g} is kept")
    return best


def _one(shared: Comparison, run: MethodRun) -> dict[str, Any]:
    config, store = shared.config, shared.store
    key = run_key(config, run, shared.data_hash, shared.shards)
    finished = Path(config.output) / "results" / f"{key}.json"
    if finished.is_file():
        print(f"{run.name}: finished before ({key}); run=NAME tunes it anew")
        return json.loads(finished.read_text())
    run_id = track.start_run(
        store, key, f"{run.name} seed {config.seed}", settings(config, run), tags(shared, run, key)
    )
    track.log_files(store, run_id, [shared.source])
    log_data(shared, run_id)
    task = Task(config, run, shared.annotations, shared.shards)
    try:
        with track.watch_machine(store, run_id):
            done = tune(config, run, task, key, store, run_id)
    except RunFailedError as error:
        track.end_run(store, run_id, "FAILED", {"error": str(error)})
        raise
    track.log_metrics(store, run_id, done["metrics"], done["steps"])  # the curves end here
    _log_predictions(store, run_id, done["predictions"])
    with done["checkpoint"].as_directory() as folder:
        track.log_files(store, run_id, [Path(folder) / WEIGHTS], "tuned")
        track.end_run(store, run_id, tags=done["tags"])
        if config.mlflow.model != "none":  # last: a server that takes no models has the whole run
            _log_model(shared, run, run_id, Path(folder) / WEIGHTS, done.get("gallery"))
    result = {"method": run.name, "seed": config.seed, "run_id": run_id, "metrics": done["metrics"]}
    finished.parent.mkdir(parents=True, exist_ok=True)
    partial = finished.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1))
    partial.rename(finished)
    return result


def _log_predictions(store: track.Store, run_id: str, predictions: pa.Table) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / track.PREDICTIONS
        pq.write_table(predictions, file)
        track.log_files(store, run_id, [file])


def _log_model(shared: Comparison, run: MethodRun, run_id: str, tuned: Path, gallery: Gallery | None) -> None:
    """The tuned method, ready to be loaded anywhere."""
    config = shared.config
    reading = Reading(
        **config.clip.model_dump(),
        **config.video.model_dump(include={"frames", "size", "sampler"}),
        stored_frames=config.video.kept,
        seed=config.seed,
        precision=run.train.precision,
    )
    caption = shared.annotations.filter(pc.equal(shared.annotations["split"], "test"))["caption"][0].as_py()
    with tempfile.TemporaryDirectory() as folder:
        search.save(Path(folder) / "search", reading, tuned, gallery)
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
