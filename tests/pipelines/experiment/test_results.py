"""What a finished run leaves: the numbers first, and the rest of MLflow's share as long as it lacks it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.report import predicted

from pipelines import track
from pipelines.experiment import runs
from pipelines.experiment.prepare import DecodedData
from pipelines.experiment.results import ResultFiles, RunResult
from pipelines.tune.worker import WEIGHTS, WorkerResult
from vopcore.config import read_config
from vopcore.datasets import ANNOTATIONS
from vopcore.tuned_model import VideoVectors


class Checkpoint:
    """Stands for Ray's, which is a folder with a way in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def as_directory(self) -> "Checkpoint":
        return self

    def __enter__(self) -> str:
        return str(self.folder)

    def __exit__(self, *exception: object) -> None:
        pass


@pytest.fixture
def experiment(tmp_path):
    """Of one method, with an MLflow store on SQLite."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\noutput: {tmp_path}/out\ndata: {{dataset: folder, root: {tmp_path}}}\n"
        "clip: {model: conf/tiny_clip.json, pretrained: null, words: 16}\nmlflow: {model: search}\n"
        "video: {frames: 2, size: 32}\nmethods: {vop: {}}\n"
    )
    config = read_config(path)
    rows = ANNOTATIONS.empty_table()
    (tmp_path / "out").mkdir()
    data = DecodedData(config, rows, f"{tmp_path}/out/shards/x", "d", "x")
    return runs.open_experiment(data, path)


def finish(experiment, tmp_path) -> tuple[ResultFiles, RunResult]:
    """Write the results of the run as if it had just been tuned."""
    (run,) = experiment.config.methods
    files = runs.result_files(experiment, run)
    run_id = track.start_run(experiment.store, files.key, run.name, {}, {})
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / WEIGHTS).write_bytes(b"weights")
    result = RunResult("vop", 0, files.key, run_id, {"t2v/R1": 50.0})
    measured = WorkerResult(
        steps=3,
        metrics=result.metrics,
        tags={"gpu": "none"},
        predictions=predicted([1.0, 2.0]),
        transfers={"msvd": predicted([3.0, 1.0])},
        gallery=VideoVectors(["a", "b"], np.ones((2, 4), np.float32)),
    )
    files.write(result, measured, Checkpoint(checkpoint))
    return files, result


def test_a_model_that_cannot_be_made_costs_neither_the_numbers_nor_the_command(experiment, tmp_path, caplog):
    """There is no caption of the test split to show as the model's example: an error in the last step."""
    files, result = finish(experiment, tmp_path)
    (run,) = experiment.config.methods
    runs._log(experiment, run, files, result)
    assert RunResult.read(files.numbers) == result
    assert f"vop: its numbers are in {files.numbers}, but not all of it is in MLflow" in caplog.text
    assert {file.name for file in files.unlogged.iterdir()} >= {WEIGHTS, "vectors.npy", "videos.json"}

    logged = experiment.store.client.get_run(result.run_id)
    assert logged.data.metrics["t2v/R1"] == 50.0
    assert logged.info.status == "FINISHED"


def test_what_is_not_logged_yet_is_logged_by_the_same_command_and_then_gone(experiment, tmp_path):
    finish(experiment, tmp_path)
    (run,) = experiment.config.methods
    assert runs.finished(experiment, run) is None  # something is left to do

    without_model = experiment.config.model_copy(
        update={"mlflow": experiment.config.mlflow.model_copy(update={"model": "none"})}
    )
    data = DecodedData(without_model, experiment.data.annotations, experiment.data.shards, "d", "x")
    again = runs.Experiment(data, experiment.source, experiment.store)
    result = runs.run_method(again, run)
    assert result.metrics == {"t2v/R1": 50.0}
    assert not runs.result_files(again, run).unlogged.exists()
    assert runs.finished(again, run) == result
    artifacts = experiment.store.client.list_artifacts(result.run_id)
    assert {artifact.path for artifact in artifacts} >= {"predictions.parquet", "tuned", "transfer"}
    transferred = track.fetch(experiment.store, result.run_id, "transfer/msvd.parquet", tmp_path)
    assert pq.read_table(transferred)["rank"].to_pylist() == [3.0, 1.0]
