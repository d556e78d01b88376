"""A run published to a folder and to a hub that runs here, and loaded again in a process of its own."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support import ROOT
from support.hub import local_hub
from support.report import add_run, make_store

from pipelines import publish, track
from vopcore.clip import load, share
from vopcore.methods import METHODS, load_tuned, save_tuned, tune, tuned

MODEL = str(ROOT / "conf/tiny_clip.json")
SPLITS = {"test": {"captions": 1000, "videos": 999}}
LOAD = """
import json, sys
import torch
from vopcore.clip import load
from vopcore.methods import load_tuned, tuned
torch.manual_seed(5)
clip = load(sys.argv[1], None)
print(json.dumps({name: p.double().sum().item() for name, p in tuned(load_tuned(clip, sys.argv[2])).items()}))
"""


@dataclass(frozen=True)
class World:
    """A store with one finished run of `vop` and one without weights, and the sums of the tuned tensors."""

    store: track.RunStore
    sums: dict[str, float]
    clip: torch.nn.Module


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publish")
    torch.manual_seed(5)
    plain = load(MODEL, None)
    clip = tune(share(plain), METHODS["vop"](), 4)
    for parameter in tuned(clip).values():
        torch.nn.init.normal_(parameter)
    save_tuned(folder / "tuned.safetensors", clip, "mean")

    store = make_store(folder)
    params = {"clip.model": MODEL, "train.lr": "0.005", "method.pooling": "mean"}
    run_id = add_run(store, "vop", recall=41.25, params=params)
    track.log_data(
        store, run_id, "msrvtt_9k", "abcd1234", "/data", {"test": {"captions": 1000, "videos": 999}}
    )
    track.log_files(store, run_id, [folder / "tuned.safetensors"], "tuned")
    add_run(store, "full")
    sums = {name: p.double().sum().item() for name, p in tuned(clip).items()}
    return World(store, sums, plain)


def run(world: World, *words: str) -> int:
    return publish.main([*words, "--uri", world.store.uri])


def test_a_folder_holds_weights_that_load_and_a_card_with_the_runs_numbers(world, tmp_path, capsys):
    assert run(world, "msrvtt_9k/vop", "--to", str(tmp_path / "vop")) == 0
    assert "load_tuned(clip, " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"vop"}
    names = {path.name for path in (tmp_path / "vop").iterdir()}
    assert names == {"tuned.safetensors", "settings.json", "metrics.json", "README.md"}

    loaded = tuned(load_tuned(world.clip, tmp_path / "vop/tuned.safetensors"))
    assert {name: p.double().sum().item() for name, p in loaded.items()} == world.sums
    assert json.loads((tmp_path / "vop/settings.json").read_text())["train.lr"] == "0.005"
    assert json.loads((tmp_path / "vop/metrics.json").read_text())["t2v/R1"] == 41.25

    card = (tmp_path / "vop/README.md").read_text()
    assert card.startswith("---\nlibrary_name: vopcore\n")
    assert "| text to video | R@1 | 41.2 | 38.2 to 44.2 |" in card
    assert "- test: 1,000 captions, 999 videos" in card
    assert "train.lr: 0.005" in card
    assert "mean rank" not in card  # this run has none


def test_every_number_on_a_card_is_in_the_run(world, tmp_path):
    assert run(world, "msrvtt_9k/vop", "--to", str(tmp_path / "vop")) == 0
    card = (tmp_path / "vop/README.md").read_text()
    metrics = json.loads((tmp_path / "vop/metrics.json").read_text())
    table = card.split("## Recall")[1].split("##")[0]
    printed = re.findall(r"\d+\.\d", re.sub(r"95%", "", table))
    assert len(printed) == 6
    assert set(printed) <= {f"{value:.1f}" for value in metrics.values()}


def environment(folder: Path, endpoint: str) -> dict[str, str]:
    own = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "cache"),
        "HF_TOKEN": "hf_none",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    return os.environ | own | {"PYTHONPATH": str(ROOT)}


@pytest.mark.long
def test_a_run_goes_to_a_hub_and_comes_back_in_another_process(world, tmp_path):
    (tmp_path / "hub").mkdir()
    with local_hub(tmp_path / "hub") as endpoint:
        own = environment(tmp_path, endpoint)
        command = [sys.executable, ROOT / "pipelines/publish.py", "msrvtt_9k/vop", "--to", "hub:me/vop"]
        command += ["--uri", world.store.uri]
        sent = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert sent.returncode == 0, sent.stderr
        assert 'load_tuned(clip, "hub:me/vop")' in (tmp_path / "hub/me/vop/README.md").read_text()

        command = [sys.executable, "-c", LOAD, MODEL, "hub:me/vop"]
        got = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert got.returncode == 0, got.stderr
        assert json.loads(got.stdout.splitlines()[-1]) == world.sums

    # The hub is away: what was fetched is still there, and what was never there is said in one line.
    again = subprocess.run(
        command, cwd=tmp_path, env=own | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert json.loads(again.stdout.splitlines()[-1]) == world.sums
    command[-1] = "hub:me/none"
    none = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert re.match(r"ValueError: hub:me/none: ", none.stderr.strip().splitlines()[-1])


def test_a_hub_that_is_away_loses_nothing(world, tmp_path):
    command = [sys.executable, ROOT / "pipelines/publish.py", "msrvtt_9k/vop", "--to", "hub:me/vop"]
    command += ["--uri", world.store.uri]
    own = environment(tmp_path, "http://127.0.0.1:9")
    sent = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert sent.returncode == 2
    (line,) = sent.stderr.strip().splitlines()
    assert line.endswith("all of it is kept in outputs/published/me/vop; the same command tries again")
    assert (tmp_path / "outputs/published/me/vop/tuned.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vop", "--to", "x"], "write EXPERIMENT/METHOD"),
        (["msrvtt_9k/lora", "--to", "x"], "no finished run 'lora'"),
        (["msrvtt_9k/full", "--to", "x"], "has no tuned weights to publish"),
        (["msrvtt_9k/vop", "--to", "hub:vop"], "a place on a hub is hub:ORG/NAME"),
        (["msrvtt_9k/vop", "--to", "."], "holds no published run"),
    ],
)
def test_what_cannot_be_published_is_refused_in_one_line(
    world, words, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("kept")
    assert run(world, *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
