"""The command on several Ray nodes, each with its own raylet: work is spread, nodes die and join."""

import tempfile

import pytest
from cluster_support import Nodes, config, corpus, doing, metrics, read_log, start, until, weights
from ingest_support import committed_videos

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """One machine, nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        done = start(config(folder, clips, epochs=12), RAY_TMPDIR=temporary)
        assert done.wait(300) == 0, read_log(folder)
    return folder


@pytest.fixture
def nodes():
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        nodes = Nodes(temporary)
        yield nodes
        nodes.end()


def test_nodes_that_die_and_join_change_no_number(nodes, clips, undisturbed, tmp_path):
    first, second = nodes.add(), nodes.add()
    run = start(config(tmp_path, clips, epochs=12), RAY_ADDRESS=nodes.address)
    try:
        until(lambda: doing(first, "MapBatches") and doing(second, "MapBatches"), "ingest on both nodes")
        until(lambda: any(tmp_path.glob("out/shards/*/0*.json")), "a shard")
        nodes.kill(first)
        third = nodes.add()
        until(lambda: doing(second, "TrainWorker") and doing(third, "TrainWorker"), "tuning on both nodes")
        until(lambda: any(tmp_path.glob("out/runs/vop_p-*/checkpoint_*")), "a checkpoint")
        nodes.kill(third)
        until(lambda: "waiting: tuning asks for 2 workers" in read_log(tmp_path), "the word that it waits")
        nodes.add()
        assert run.wait(240) == 0, read_log(tmp_path)
    finally:
        run.kill()
    (shards,) = (tmp_path / "out/shards").iterdir()
    videos = committed_videos(str(shards))
    assert len(videos) == 34
    assert len(set(videos)) == 34
    assert metrics(tmp_path) == metrics(undisturbed)
    assert weights(tmp_path) == weights(undisturbed)


def test_more_workers_than_the_cluster_has_room_for_are_refused(nodes, clips, tmp_path):
    nodes.add(num_gpus=2)
    file = config(tmp_path, clips)
    asked = ["resources.workers=4", "resources.gpu=true"]
    assert start(file, *asked, RAY_ADDRESS=nodes.address).wait(120) == 2
    assert read_log(tmp_path).splitlines()[-1] == (
        "error (exit code 2): resources.workers: tuning asks for 4 workers with 1 CPU and 1 GPU each, this"
        " cluster has 1 CPU, 2 GPU, room for 1"
    )
    assert not (tmp_path / "out/shards").exists()
