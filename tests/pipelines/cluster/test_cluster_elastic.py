"""An elastic run on nodes that come and go grows and shrinks, and no step is lost or doubled."""

import tempfile
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support.cluster import Nodes, config, corpus, doing, read_log, start, until

pytestmark = [pytest.mark.cluster, pytest.mark.long]

EPOCHS = 1500  # Ray looks for new nodes once a minute


def steps(folder: Path) -> list[int]:
    """Of the run in `folder`, as MLflow has them."""
    client = MlflowClient(f"sqlite:///{folder}/out/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    return [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]


def checkpoints(folder: Path) -> set[Path]:
    return set(folder.glob("out/runs/vop_p-*/checkpoint_*"))


def test_an_elastic_run_takes_a_node_that_joins_and_goes_on_without_one_that_dies(tmp_path):
    clips = corpus(tmp_path / "clips")
    settings = ["resources.workers=1", "resources.max_workers=2", "train.checkpoint_every=50"]
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        nodes = Nodes(temporary)
        first = nodes.add()
        run = start(config(tmp_path, clips, EPOCHS), *settings, RAY_ADDRESS=nodes.address)
        try:
            until(lambda: doing(first, "TrainWorker"), "tuning on one node")
            second = nodes.add()
            both = [first, second]
            until(lambda: all(doing(node, "TrainWorker") for node in both), "tuning on both nodes")
            before = checkpoints(tmp_path)
            until(lambda: checkpoints(tmp_path) - before, "a checkpoint of two workers")
            assert all(doing(node, "TrainWorker") for node in both)
            nodes.kill(second)
            assert run.wait(600) == 0, read_log(tmp_path)
        finally:
            run.kill()
            nodes.end()
    assert steps(tmp_path) == list(range(1, 3 * EPOCHS + 1))
