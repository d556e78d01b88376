"""Videos in and shards out of an object store whose every tenth answer is an error."""

import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
import ray
from ingest_support import annotations, committed_videos
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from video_support import write_video
from werkzeug.serving import make_server

from pipelines.ingest import ingest
from vopcore.shards import ShardCache, Shards, verify
from vopcore.video import decode

ROOT = Path(__file__).parents[1]


class Unreliable:
    """A WSGI application that answers every tenth request with 503."""

    def __init__(self, application):
        self.application, self.requests, self.refused = application, 0, 0
        self.is_failing = False
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        with self.lock:
            self.requests += 1
            refuse = self.is_failing and self.requests % 10 == 0
            self.refused += refuse
        if refuse:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return self.application(environ, start_response)


@pytest.fixture(scope="module")
def server():
    application = Unreliable(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield application, server.server_port
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module", autouse=True)
def own_ray():
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **keys}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        ray.init(_temp_dir=folder, include_dashboard=False, num_cpus=2, runtime_env={"env_vars": environment})
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_ingest_between_buckets_that_fail_every_tenth_request(tmp_path, server):
    application, port = server
    options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"s3://videos/{options}")
    filesystem.create_dir("videos")
    filesystem.create_dir("shards")
    local = {f"v{i}": write_video(tmp_path / f"{i}.mp4", num_frames=10 + i) for i in range(12)}
    for video, path in local.items():
        pyarrow.fs.copy_files(str(path), f"videos/{video}.mp4", pyarrow.fs.LocalFileSystem(), filesystem)
    remote = {video: f"s3://videos/{video}.mp4{options}" for video in local}
    remote["gone"] = f"s3://videos/gone.mp4{options}"

    application.is_failing = True
    settings = {"stored_frames": 4, "size": 32, "max_failed": 0.1}
    result = ingest(annotations(remote), f"s3://shards/all{options}", **settings)
    again = ingest(annotations(remote), f"s3://shards/all{options}", **settings)
    assert application.refused > 5
    assert (result.ok, result.failed, again.decoded_now) == (12, 1, 0)
    assert committed_videos(result.folder) == sorted(remote)
    assert verify(result.folder) == []
    shards = Shards(result.folder, ShardCache(tmp_path / "cache"))
    for video, path in local.items():
        assert np.array_equal(shards.frames(video), decode(path, count=4, size=32).pixels)
    assert "no such file" in shards.videos["gone"].error
    assert not list((tmp_path / "cache").glob("*.part"))
