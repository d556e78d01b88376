"""The command on several Ray nodes, each with its own raylet: work is spread, nodes die and join."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from cluster_support import (
    ROOT,
    config,
    corpus,
    metrics,
    read_log,
    shell_environment,
    until,
    weights,
)
from ingest_support import committed_videos
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("clips"))


def start(file: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    """The command in the background; what it says goes to `log` beside the config."""
    with (file.parent / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "pipelines/run.py", str(file), *overrides],
            cwd=ROOT,
            env=shell_environment(RAY_AUTH_MODE="disabled", **environment),
            stdout=log,
            stderr=log,
        )


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """One machine, nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        done = start(config(folder, clips, epochs=12), RAY_TMPDIR=temporary)
        assert done.wait(300) == 0, read_log(folder)
    return folder


class Nodes:
    """A head without work, and machines that come and go."""

    def __init__(self, temporary: str) -> None:
        system = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        head = {
            "num_cpus": 0,
            "_temp_dir": temporary,
            "object_store_memory": 10**8,
            "include_dashboard": False,
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            self._cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": system})
        self.address = self._cluster.address

    def add(self, **resources):
        return self._cluster.add_node(object_store_memory=10**8, **({"num_cpus": 1} | resources))

    def kill(self, node) -> None:
        """As if its power went: raylet and workers at once."""
        raylet = raylet_of(node)
        family = [raylet, *raylet.children(recursive=True)]
        for process in family:
            process.send_signal(signal.SIGSTOP)
        for process in family:
            process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


def raylet_of(node) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def doing(node, what: str) -> bool:
    """Whether a worker of the node is busy with `what`."""
    try:
        names = [" ".join(p.cmdline()) for p in raylet_of(node).children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    return any(name.startswith("ray::") and what in name for name in names)


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
