"""Videos in and shards out of object stores: an S3 whose every tenth answer is an error, and Google's."""

import threading
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
from gcp_storage_emulator.server import create_server
from support.bucket import KEYS, make_bucket, s3_server
from support.cluster import free_port
from support.ingest import annotations, committed_videos
from support.local_ray import local_ray
from support.video import write_video

from pipelines.ingest.driver import ingest
from vopcore.config.sections import Video
from vopcore.shards import Shards, verify
from vopcore.storage import ShardCache
from vopcore.video import decode


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


@pytest.fixture(scope="module", autouse=True)
def ray_with_keys():
    with local_ray(**KEYS):
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {f"v{i}": write_video(folder / f"v{i}.mp4", num_frames=10 + i) for i in range(12)}


def ingest_twice(videos: dict[str, Path], folder: str, shards: str, options: str, cache: Path) -> None:
    """From the bucket `folder` into `shards`; all of `videos` and one that is not there."""
    for video, path in videos.items():
        pyarrow.fs.copy_files(str(path), f"{folder}/{video}.mp4{options}")
    path = folder.rpartition("://")[2].rpartition("@")[2]
    remote = {video: f"{path}/{video}.mp4" for video in [*videos, "gone"]}
    video = Video(stored_frames=4, size=32, max_failed=0.1)
    result = ingest(annotations(remote), f"{shards}{options}", video, f"{folder}{options}")
    again = ingest(annotations(remote), f"{shards}{options}", video, f"{folder}{options}")
    assert (result.ok, result.failed, again.decoded_now) == (12, 1, 0)
    assert committed_videos(result.folder) == sorted(remote)
    assert verify(result.folder) == []
    read = Shards(result.folder, ShardCache(cache))
    for video, path in videos.items():
        assert np.array_equal(read.frames(video), decode(path, count=4, size=32).pixels)
    assert "no such file" in read.videos["gone"].error
    assert not list(cache.glob("*.part"))


def test_ingest_between_buckets_that_fail_every_tenth_request(videos, tmp_path):
    applications = []

    def unreliable(application):
        applications.append(Unreliable(application))
        return applications[0]

    with s3_server(unreliable) as options:
        make_bucket("videos", options)
        make_bucket("shards", options)
        applications[0].is_failing = True
        ingest_twice(videos, "s3://videos", "s3://shards/all", options, tmp_path / "cache")
    assert applications[0].refused > 5


def test_ingest_between_folders_of_a_bucket_of_google(videos, tmp_path):
    port = free_port()
    with create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket"):
        options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&retry_limit_seconds=20"
        place = "gs://anonymous@bucket"
        ingest_twice(videos, f"{place}/videos", f"{place}/shards", options, tmp_path / "cache")
