"""The command on several Ray nodes, each with its own raylet: work is spread, nodes die and join; and with
everything in an object store and on an MLflow server.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from urllib.parse import parse_qsl

import pyarrow.fs
import pytest
from mlflow import MlflowClient
from support.bucket import s3_server
from support.cluster import (
    Nodes,
    answers,
    config,
    corpus,
    doing,
    end,
    free_port,
    metrics,
    raylet_of,
    read_log,
    start,
    until,
    weights,
)
from support.ingest import committed_videos

from pipelines.tune.snapshot import LIST

pytestmark = pytest.mark.cluster

RUNS = "bucket/runs#1 50%20/small"  # a name that an address parsed as a whole would cut


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


class Counted:
    """A WSGI application that counts what it hands out of each object."""

    def __init__(self, application):
        self.application, self.sent, self.lock = application, Counter(), threading.Lock()

    def __call__(self, environ, start_response):
        body = list(self.application(environ, start_response))
        if environ["REQUEST_METHOD"] == "GET":
            with self.lock:
                self.sent[environ["PATH_INFO"]] += sum(map(len, body))
        return body


@pytest.fixture
def s3(monkeypatch):
    """An S3 on this machine; its address is in the environment, as for any S3 that is not AWS's."""
    applications = []

    def counted(application):
        applications.append(Counted(application))
        return applications[0]

    with s3_server(counted) as options:
        address = dict(parse_qsl(options.removeprefix("?")))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address['endpoint_override']}")
        monkeypatch.setenv("AWS_REGION", address["region"])
        yield applications[0]


@pytest.fixture
def mlflow_server(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [
        f"--backend-store-uri=sqlite:///{tmp_path}/server.db",
        f"--artifacts-destination={tmp_path}/kept",
    ]
    with (tmp_path / "server.log").open("w") as log:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # half a dozen processes
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment)
    until(lambda: answers(f"http://127.0.0.1:{port}"), "the MLflow server")
    yield f"http://127.0.0.1:{port}"
    end(process)


@pytest.fixture
def nodes():
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        nodes = Nodes(temporary)
        yield nodes
        nodes.end()


def is_listed(folder):
    """Whether a checkpoint can be gone on from: one that is still being written is in no list."""
    lists = folder.glob(f"out/runs/vop_p-*/{LIST}")
    return any("checkpoint_2" in file.read_text() for file in lists)


def test_nodes_that_die_and_join_change_no_number(nodes, clips, undisturbed, tmp_path):
    first, second = nodes.add(), nodes.add()
    # A machine that is gone is no failure of the code.
    run = start(config(tmp_path, clips, epochs=12), "resources.max_failures=0", RAY_ADDRESS=nodes.address)
    try:
        until(lambda: doing(first, "MapBatches") and doing(second, "MapBatches"), "ingest on both nodes")
        until(lambda: any(tmp_path.glob("out/shards/*/0*.json")), "a shard")
        nodes.kill(first)
        third = nodes.add()
        until(lambda: doing(second, "TrainWorker") and doing(third, "TrainWorker"), "tuning on both nodes")
        until(lambda: is_listed(tmp_path), "a checkpoint in Ray's list")
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
    assert "a machine is gone; going on from the last checkpoint" in read_log(tmp_path)
    assert re.search(r"^vop_p: going on from step \d+ of 36 with 2 workers$", read_log(tmp_path), re.M)


@pytest.mark.long
def test_a_job_that_waits_for_the_cpus_of_another_says_so_and_goes_on(nodes, clips, tmp_path):
    nodes.add(num_cpus=2)
    waiting, late, busy = (config(tmp_path / name, clips, epochs=1) for name in ("waiting", "late", "busy"))
    address = {"RAY_ADDRESS": nodes.address}
    assert start(waiting, "stages=[ingest]", **address).wait(240) == 0, read_log(waiting.parent)
    runs = [start(busy, "train.epochs=100000", **address)]
    try:
        until(lambda: "vop_p: tune: " in read_log(busy.parent), "the first job to tune")
        runs.append(start(waiting, **address))
        runs.append(start(late, "stages=[ingest]", **address))
        asked = "waiting: tuning asks for 2 workers with 1 CPU each; other work holds them, room for 0 now"
        until(lambda: asked in read_log(waiting.parent), "the word that tuning waits")
        until(lambda: "waiting: all 2 CPUs are in use" in read_log(late.parent), "that decoding waits")
        assert "waiting: tuning" not in read_log(busy.parent)
        runs[0].terminate()
        assert runs[1].wait(240) == 0, read_log(waiting.parent)
        assert runs[2].wait(240) == 0, read_log(late.parent)
    finally:
        for run in runs:
            run.kill()


def test_a_process_that_is_killed_counts_and_the_last_line_says_what_happened(nodes, clips, tmp_path):
    node = nodes.add(num_cpus=2)
    settings = ["resources.max_failures=0", "train.epochs=100000"]
    run = start(config(tmp_path, clips), *settings, RAY_ADDRESS=nodes.address)
    try:
        until(lambda: "vop_p: tune: " in read_log(tmp_path), "tuning")
        workers = [p for p in raylet_of(node).children() if "TrainWorker" in " ".join(p.cmdline())]
        workers[0].kill()
        assert run.wait(240) == 1, read_log(tmp_path)
    finally:
        run.kill()
    last = read_log(tmp_path).splitlines()[-1]
    assert last.startswith("error (exit code 1): vop_p: a process on "), last
    assert "was ended from outside" in last


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


def listed(store: pyarrow.fs.S3FileSystem, folder: str) -> list[pyarrow.fs.FileInfo]:
    return store.get_file_info(pyarrow.fs.FileSelector(folder))


def bucket_of(clips) -> pyarrow.fs.S3FileSystem:
    """A bucket with the clips, and room for shards."""
    store, _ = pyarrow.fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
    store.create_dir("bucket")
    pyarrow.fs.copy_files(str(clips), "bucket/clips", destination_filesystem=store)
    return store


@pytest.mark.long
def test_a_node_that_cannot_reach_the_bucket_is_named_before_any_work(s3, nodes, clips, tmp_path):
    bucket_of(clips)
    nodes.add()
    nodes.add(env_vars={"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"})
    places = [f"data.root={clips}", "data.videos=s3://bucket/clips", "storage=s3://bucket/shards"]
    run = start(config(tmp_path, clips), *places, RAY_ADDRESS=nodes.address)
    assert run.wait(240) == 2, read_log(tmp_path)
    last = read_log(tmp_path).splitlines()[-1]
    host = socket.gethostname()
    assert last.startswith(f"error (exit code 2): storage: {host} cannot use s3://bucket/shards: "), last
    assert "onnect" in last  # AWS's own words for a port where nobody listens
    assert not (tmp_path / "out/results").exists()


def test_everything_in_buckets_gives_the_numbers_of_a_local_run(
    s3, nodes, clips, undisturbed, mlflow_server, tmp_path
):
    store = bucket_of(clips)
    labels = tmp_path / "labels"  # only the annotations are on a disk
    labels.mkdir()
    shutil.copy(clips / "captions.jsonl", labels)
    places = [f"data.root={labels}", "data.videos=s3://bucket/clips", f"storage=s3://{RUNS}"]
    places += [f"mlflow.uri={mlflow_server}", f"resources.cache.folder={tmp_path}/cache"]
    nodes.add()
    nodes.add()
    run = start(config(tmp_path, labels, epochs=12), *places, RAY_ADDRESS=nodes.address)
    assert run.wait(300) == 0, read_log(tmp_path)

    assert metrics(tmp_path) == metrics(undisturbed)
    pyarrow.fs.copy_files(f"{RUNS}/runs", str(tmp_path / "out/runs"), source_filesystem=store)
    assert weights(tmp_path) == weights(undisturbed)
    (shards,) = listed(store, f"{RUNS}/shards")
    videos = [f"videos/{path.name}" for path in (clips / "videos").iterdir()]
    assert committed_videos(f"s3://{shards.path}") == sorted(videos)
    sizes = {f"/{i.path}": i.size for i in listed(store, shards.path) if i.path.endswith(".arrow")}
    # Each byte of a shard once, though two workers read each in twelve epochs; the index is another file.
    arrow_files = {path: count for path, count in s3.sent.items() if path.endswith(".arrow")}
    sent = {path: count for path, count in arrow_files.items() if "/index/" not in path}
    assert sent == sizes

    client = MlflowClient(mlflow_server)
    (kept,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.data.metrics["t2v/R1"] == metrics(tmp_path)["t2v/R1"]
    assert {"tuned", "predictions.parquet"} <= {a.path for a in client.list_artifacts(kept.info.run_id)}
    steps = [m.step for m in client.get_metric_history(kept.info.run_id, "train/loss")]
    assert steps == list(range(1, 37))
