"""Every YAML that ships is read, and says what its papers say."""

import pytest
from support import ROOT

from vopcore.config import read_config
from vopcore.datasets import PUBLISHED
from vopcore.video.sample import choose, uniform

CONF = ROOT / "conf"
FILES = sorted(set(CONF.glob("*.yaml")) - {CONF / "search.yaml"})  # that one is index.py's


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_that_ships_is_read(path, tmp_path, monkeypatch):
    monkeypatch.chdir(CONF.parent)
    config = read_config(path, [f"data.root={tmp_path}", "data.videos=null"])
    assert config.methods
    assert config.name == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_methods_of_a_config_are_read_not_only_those_it_compares(path, tmp_path, monkeypatch):
    monkeypatch.chdir(CONF.parent)
    assert read_config(path, [f"data.root={tmp_path}", "data.videos=null", "compare=all"]).methods


# Cross-Modal Adapter: (r, d_s) per data set
ADAPTERS = {
    "msrvtt_9k": (8, 16),
    "didemo": (8, 8),
    "msvd": (16, 16),
    "vatex": (16, 64),
    "activitynet": (16, 512),
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "msrvtt_full"])
def test_every_benchmark_has_a_config_with_the_papers_settings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(CONF.parent)
    config = read_config(CONF / f"{name}.yaml", [f"data.root={tmp_path}", "compare=all"])
    runs = {run.name: run for run in config.methods}
    assert config.data.dataset == name
    assert config.video.frames == 12
    assert runs["vop"].train.epochs == 5
    adapter = runs["cross_modal_adapter"]
    assert (adapter.method.reduction, adapter.method.shared) == ADAPTERS.get(name, (8, 16))
    assert adapter.pooling == "query_aware"
    assert adapter.train.batch_size == 128
    assert not adapter.train.augment
    if name not in ("msvd", "vatex"):  # those are not in VoP's paper
        assert (config.clip.words, runs["vop"].train.batch_size) == (77, 32)
        assert runs["vop"].train.augment


@pytest.mark.parametrize("name", ["activitynet", "didemo"])
def test_twelve_of_the_stored_frames_are_the_ones_that_x_pool_tests_on(name, tmp_path, monkeypatch):
    monkeypatch.chdir(CONF.parent)
    video = read_config(CONF / f"{name}.yaml", [f"data.root={tmp_path}"]).video
    for num_frames in range(240, 5000, 37):
        wanted = uniform(num_frames, 25.0, video.frames)
        stored = uniform(num_frames, 25.0, video.stored_frames)
        tested = [stored[index] for index in choose(len(stored), video.frames, None)]
        assert max(abs(a - b) for a, b in zip(wanted, tested, strict=True)) <= 1
