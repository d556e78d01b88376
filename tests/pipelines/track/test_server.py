"""Tuning against a real MLflow server that is killed in the middle of a run, stays away, and comes back."""

import json
import signal
import threading
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from support import ROOT
from support.cluster import until
from support.local_ray import local_ray
from support.mlflow_server import MLflowServer

from pipelines import deliver, track
from pipelines import run as cli

pytestmark = pytest.mark.long

STEPS = 24  # 64 clips in batches of 16, 6 times


def loss_steps(server: MLflowServer) -> list[int]:
    """The steps of vop_p's loss that have arrived."""
    runs = [run for run in server.runs("quickstart") if run.data.tags["method"] == "vop_p"]
    return [step for run in runs for step in server.steps(run, "train/loss")]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """vop_p whose server dies, then zero_shot that never sees it; then the server is back and gets all."""
    folder = tmp_path_factory.mktemp("server")
    server, seen = MLflowServer(folder), {}
    small = [
        "shapes.videos=64",
        "shapes.twins=4",
        "shapes.pretraining.steps=2",
        "shapes.pretraining.batch_size=16",
    ]
    small += ["train.batch_size=16", "train.epochs=6", "video.max_failed=5%", "resources.workers=1"]
    places = [f"output={folder}/out", f"data.root={folder}/shapes", f"mlflow.uri={server.uri}"]
    arguments = [f"{ROOT}/conf/quickstart.yaml", *small, *places]

    def kill_in_the_middle() -> None:
        until(lambda: loss_steps(server), "a step")
        server.kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        patch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own
        with local_ray(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1"):
            server.start()
            killer = threading.Thread(target=kill_in_the_middle)
            killer.start()
            seen["killed"] = cli.main([*arguments, "compare=[vop_p]"])
            killer.join()
            seen["journal"] = [
                json.loads(line)
                for file in (folder / "out/mlflow_waiting").glob("*/calls.jsonl")
                for line in file.open()
            ]
            seen["never there"] = cli.main([*arguments, "compare=[zero_shot]"])
        server.start()
        seen["before"] = loss_steps(server)
        seen["delivered"] = deliver.main([f"{folder}/out/mlflow_waiting"])
        yield folder, server, seen
        server.kill()


def runs(server: MLflowServer) -> dict:
    return {run.data.tags["method"]: run for run in server.runs("quickstart")}


def test_tuning_does_not_ask_whether_its_server_is_there(story):
    folder, _, seen = story
    assert (seen["killed"], seen["never there"], seen["delivered"]) == (0, 0, 0)
    results = [json.loads(path.read_text())["method"] for path in (folder / "out/results").glob("*.json")]
    assert sorted(results) == ["vop_p", "zero_shot"]


def test_what_the_server_missed_was_kept_and_nothing_else(story):
    _, _, seen = story
    kept = [
        point[3]
        for call, value in seen["journal"]
        if call == "metrics"
        for point in value
        if point[0] == "train/loss"
    ]
    assert 0 < len(kept) < STEPS
    assert sorted(seen["before"] + kept) == list(range(1, STEPS + 1))
    assert {"metrics", "file", "describe", "model", "end"} == {call for call, _ in seen["journal"]}


def test_in_the_end_the_server_has_every_step_once_and_the_numbers_of_the_results(story):
    folder, server, _ = story
    assert sorted(loss_steps(server)) == list(range(1, STEPS + 1))
    for path in (folder / "out/results").glob("*.json"):
        result = json.loads(path.read_text())
        run = runs(server)[result["method"]]
        assert run.info.status == "FINISHED"
        client = MlflowClient(server.uri)
        every_number = client.download_artifacts(run.info.run_id, "metrics.json", str(folder))
        assert json.loads(Path(every_number).read_text()) == result["metrics"]
        assert run.data.metrics["t2v/R1"] == round(result["metrics"]["t2v/R1"], 2)
        assert {"quickstart.yaml", "tuned", "predictions.parquet"} <= server.artifacts(run)
    assert not track.waiting(f"{folder}/out/mlflow_waiting")


def test_the_delivered_model_ranks_the_videos_as_the_run_did(story, tmp_path):
    _, server, _ = story
    run = runs(server)["vop_p"]
    (output,) = run.outputs.model_outputs
    mlflow.set_tracking_uri(server.uri)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
        file = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="predictions.parquet", dst_path=tmp_path
        )
    finally:
        mlflow.set_tracking_uri(None)
    wanted = pq.read_table(file).to_pandas()
    found = model.predict(wanted[["caption"]], params={"top_k": 5})
    np.testing.assert_allclose(found["scores"].tolist(), wanted["scores"].tolist(), rtol=0, atol=1e-5)
    for here, there, scores in zip(found["top"], wanted["top"], wanted["scores"], strict=True):
        if (np.diff(scores) < -1e-5).all():  # a twin may score the same
            assert here == there.tolist()
