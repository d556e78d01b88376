"""What a finished run leaves: the numbers first, and the rest of MLflow's share as long as it lacks it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.report import predicted

from pipelines import track
from pipelines.experiment import runs
from pipelines.experiment.identity import search_key
from pipelines.experiment.prepare import DecodedData
from pipelines.experiment.results import ResultFiles, RunResult
from pipelines.tune.search_rate import FoundRate, TrialCurve, TrialFiles, drawn_rates
from pipelines.tune.worker import WEIGHTS, WorkerResult
from vopcore.config import read_config
from vopcore.datasets import ANNOTATIONS
from vopcore.storage import Store
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


def test_a_search_is_a_table_and_two_curves_over_its_rates(experiment, tmp_path):
    files, result = finish(experiment, tmp_path)
    (run,) = experiment.config.methods
    curves = [
        TrialCurve(1e-5, [10.0], [1.0], "stopped"),
        TrialCurve(1e-4, [20.0, 31.25], [1.0, 2.0], "finished"),
        TrialCurve(1e-2, [0.0], [0.5], "diverged"),
    ]
    found = FoundRate(1e-4, curves)
    files.search.write_text(found.as_csv())
    runs._log(experiment, run, files, result)

    client = experiment.store.client
    for name, wanted in (("search/lr", [1e-5, 1e-4, 1e-2]), ("search/val_t2v_R1", [10.0, 31.25, 0.0])):
        points = client.get_metric_history(result.run_id, name)
        assert [(point.step, point.value) for point in points] == list(enumerate(wanted, 1))
    table = track.fetch(experiment.store, result.run_id, "search.csv", tmp_path)
    lines = Path(table).read_text().splitlines()
    assert lines[0] == "lr,ending,seconds,val_t2v_R1,epoch_1,epoch_2"
    assert lines[2] == "0.0001,finished,3.0,31.25,20.0,31.25"
    assert found.metrics == {"search/found_lr": 1e-4, "search/epochs": 4, "seconds/search": 4.5}


def test_a_search_that_has_ended_is_read_and_its_rate_is_that_of_the_run(experiment, tmp_path):
    (run,) = experiment.config.methods
    train = run.train.model_copy(update={"lr": "search"})
    searched = run.model_copy(update={"train": train})
    rates = drawn_rates(searched.train.search, seed=0)
    data = experiment.data
    key = search_key(data.config, searched, data.data_hash, data.shards, data.decode_hash)
    folder = tmp_path / "out/searches" / key
    folder.mkdir(parents=True)
    trials = TrialFiles(Store(folder))
    for number, rate in enumerate(rates):
        trials.write(number, TrialCurve(rate, [5.0, float(number % 7)], [1.0, 1.0], "finished"))

    found = runs._search(experiment, searched)
    assert found.rate == min(rates[6], rates[13])
    single = runs._at_rate(searched, found.rate)
    assert runs.settings(data.config, single)["train.lr"] == found.rate
    assert "train.search.trials" not in runs.settings(data.config, single)
    assert runs.result_files(experiment, single).key != runs.result_files(experiment, searched).key
