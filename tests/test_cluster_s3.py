"""Videos, shards and checkpoints in an object store, numbers on an MLflow server, work on two nodes."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter

import pyarrow.fs
import pytest
from cluster_support import (
    Nodes,
    answers,
    config,
    corpus,
    end,
    free_port,
    metrics,
    read_log,
    start,
    until,
    weights,
)
from ingest_support import committed_videos
from mlflow import MlflowClient
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

pytestmark = pytest.mark.cluster


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
    application = Counted(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield application
    server.shutdown()
    thread.join()


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


def listed(store: pyarrow.fs.S3FileSystem, folder: str) -> list[pyarrow.fs.FileInfo]:
    return store.get_file_info(pyarrow.fs.FileSelector(folder))


def test_everything_in_buckets_gives_the_numbers_of_a_local_run(s3, mlflow_server, tmp_path):
    clips = corpus(tmp_path / "clips")
    store, _ = pyarrow.fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
    store.create_dir("bucket")
    pyarrow.fs.copy_files(str(clips), "bucket/clips", destination_filesystem=store)
    labels = tmp_path / "labels"  # only the annotations are on a disk
    labels.mkdir()
    shutil.copy(clips / "captions.jsonl", labels)
    places = [f"data.root={labels}", "data.videos=s3://bucket/clips", "storage=s3://bucket/runs/small"]
    places += [f"mlflow.uri={mlflow_server}", f"resources.cache.folder={tmp_path}/cache"]
    remote, local = tmp_path / "remote", tmp_path / "local"

    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        nodes = Nodes(temporary)
        nodes.add()
        nodes.add()
        run = start(config(remote, labels), *places, RAY_ADDRESS=nodes.address)
        assert run.wait(300) == 0, read_log(remote)
        nodes.end()
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        run = start(config(local, clips), RAY_TMPDIR=temporary)
        assert run.wait(300) == 0, read_log(local)

    assert metrics(remote) == metrics(local)
    pyarrow.fs.copy_files("bucket/runs/small/runs", str(remote / "out/runs"), source_filesystem=store)
    assert weights(remote) == weights(local)
    (shards,) = listed(store, "bucket/runs/small/shards")
    videos = [f"videos/{path.name}" for path in (clips / "videos").iterdir()]
    assert committed_videos(f"s3://{shards.path}") == sorted(videos)
    sizes = {f"/{i.path}": i.size for i in listed(store, shards.path) if i.path.endswith(".arrow")}
    sent = {path: count for path, count in s3.sent.items() if path.endswith(".arrow")}
    assert sent == sizes  # each byte once, though two workers read each in four epochs

    client = MlflowClient(mlflow_server)
    (kept,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.data.metrics["t2v/R1"] == metrics(remote)["t2v/R1"]
    assert {"tuned", "predictions.parquet"} <= {a.path for a in client.list_artifacts(kept.info.run_id)}
    steps = [m.step for m in client.get_metric_history(kept.info.run_id, "train/loss")]
    assert steps == list(range(1, 13))
