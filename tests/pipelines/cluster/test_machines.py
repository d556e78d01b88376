"""What fits on which machines, and how it is said where it does not."""

import pytest

from pipelines.cluster import machines as cluster
from vopcore.config import ConfigError
from vopcore.config.sections import RunConfig
from vopcore.methods import METHODS
from vopcore.storage import below

GPU = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}
CPU = {"CPU": 4.0}
HEAD = {"memory": 1e9}


def config(**sections) -> RunConfig:
    data = {"dataset": "folder", "root": "/tmp"}
    given = {"name": "x", "output": "/tmp/out", "data": data, **sections}
    return RunConfig(methods=[{"name": "vop", "method": METHODS["vop"]()}], **given)


@pytest.mark.parametrize(
    ("machines", "asked", "fit"),
    [
        ([GPU, CPU, HEAD], {}, 12),
        ([GPU, CPU, HEAD], {"cpus_per_worker": 3}, 3),  # 2 and 1: a worker is whole on one machine
        ([GPU, GPU, CPU, HEAD], {"gpu": True}, 4),
        ([GPU, CPU], {"gpu": True, "cpus_per_worker": 8}, 1),
        ([CPU, HEAD], {"gpu": True}, 0),
    ],
)
def test_workers_fit_whole_on_machines(machines, asked, fit):
    assert cluster.num_fit(machines, config(resources=asked).resources) == fit


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "machines", lambda: [HEAD, CPU])
    monkeypatch.setattr(cluster, "grown", lambda: [GPU])
    cluster.check_machines(config(resources={"gpu": True, "workers": 2}))  # it can grow to that
    with pytest.raises(ConfigError) as error:
        cluster.check_machines(config(resources={"gpu": True, "workers": 4}))
    assert str(error.value) == (
        "resources.workers: tuning asks for 4 workers with 1 CPU and 1 GPU each, this cluster has 8 CPU, 2"
        " GPU, room for 2"
    )
    monkeypatch.setattr(cluster, "grown", lambda: [])
    with pytest.raises(ConfigError, match=r"room for 0; resources\.gpu=false tunes on CPUs"):
        cluster.check_machines(config(resources={"gpu": True}))
    cluster.check_machines(config(resources={"gpu": True}, stages=("ingest",)))


def test_results_in_the_copy_that_ray_made_of_a_checkout_are_refused():
    copy = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1/outputs/x"
    for key, sections in {"output": {"output": copy}, "storage": {"storage": copy}}.items():
        with pytest.raises(ConfigError, match=f"^{key}: .*write {key}=/a/folder/that/stays"):
            cluster.check_places(config(**sections))
    cluster.check_places(config(storage="s3://bucket/working_dir"))


@pytest.mark.parametrize(
    ("place", "there"),
    [
        ("/out", "/out/shards"),
        ("/out/", "/out/shards"),
        ("/what?/out", "/what?/out/shards"),
        ("s3://bucket/x", "s3://bucket/x/shards"),
        ("s3://bucket/x/?scheme=http&region=r", "s3://bucket/x/shards?scheme=http&region=r"),
    ],
)
def test_a_name_goes_before_the_options_of_a_uri(place, there):
    assert below(place, "shards") == there
