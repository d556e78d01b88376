"""Reference cards: made of a run, read again, compared with another run; those that ship are whole."""

from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from support import ROOT
from support.report import add_run, make_store

from pipelines import reproduce, track
from pipelines.experiment.identity import data_hash
from pipelines.reproduction.card import CardError, first_difference, read_card, wilson
from pipelines.reproduction.runs import check_data
from pipelines.reproduction.verdict import verdict_lines, verdicts
from vopcore.config import read_config
from vopcore.datasets import ANNOTATIONS

CARDS = sorted((ROOT / "conf/reference").glob("*.yaml"))
PARAMS = {
    "seed": 0,
    "train.epochs": "6",
    "train.lr": "0.005",
    "data.root": "/somewhere",
    "resources.workers": "1",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with one run, and the card that `--make` writes of it."""
    folder = tmp_path_factory.mktemp("card")
    store = make_store(folder)
    annotations = table(["a", "b", "c"])
    tags = {"data_hash": data_hash(annotations)}
    run_id = add_run(store, "vop", params=PARAMS, tags=tags)
    splits = {"test": {"captions": 3, "videos": 3}}
    track.log_data(store, run_id, "msrvtt_9k", tags["data_hash"], "/data", splits)
    words = ["--make", str(folder / "card.yaml"), "--of", "msrvtt_9k/vop", "--uri", store.uri]
    words += ["conf/msrvtt_9k.yaml", "method.name=vop", "data.root=/somewhere"]
    assert reproduce.main(words) == 0
    return store, read_card(folder / "card.yaml"), annotations


def table(captions: list[str]) -> pa.Table:
    rows = [
        {"split": "test", "video": f"v{i}", "path": None, "start": None, "end": None, "caption": caption}
        for i, caption in enumerate(captions)
    ]
    return pa.Table.from_pylist(rows, ANNOTATIONS)


def test_a_card_holds_the_runs_numbers_settings_and_data(world):
    _, card, annotations = world
    assert card.config == "conf/msrvtt_9k.yaml"
    assert card.overrides == ("method.name=vop",)
    recall = card.numbers["t2v/R1"]
    assert (recall.value, recall.low, recall.high) == (40.0, 37.0, 43.0)
    assert card.settings["train.epochs"] == "6"
    assert "data.root" not in card.settings
    assert card.data.annotations == data_hash(annotations)
    assert card.data.splits["test"].captions == 3


def test_every_number_is_inside_or_outside_and_the_first_other_setting_is_named(world):
    store, card, _ = world
    (run,) = track.runs(store)
    run = track.with_all_metrics(store, run)
    same = verdict_lines(card, verdicts(card, run.metrics), run.params, "abc")
    assert same[0] == "inside  t2v/R1: 40.00; the reference has 40.00 (37.00 to 43.00)"
    assert same[-1] == f"all {len(card.numbers)} numbers are inside the reference's intervals"

    other = run.params | {"train.epochs": "1", "resources.workers": "2", "data.root": "/elsewhere"}
    lines = verdict_lines(card, verdicts(card, run.metrics | {"t2v/R1": 30.0}), other, "abc")
    assert lines[0] == "OUTSIDE t2v/R1: 30.00; the reference has 40.00 (37.00 to 43.00)"
    assert lines[-1] == "look here first: train.epochs: 1 here, 6 in the reference"

    metrics = {name: value for name, value in run.metrics.items() if name != "t2v/R1"}
    lines = verdict_lines(card, verdicts(card, metrics), run.params, "abc")
    assert lines[0].startswith("OUTSIDE t2v/R1: none;")
    assert "no setting differs" in lines[-1]


def test_what_a_number_is_made_with_comes_before_the_machine():
    there = {"resources.workers": "1", "train.lr": "0.1"}
    assert first_difference(there, {"resources.workers": "2", "train.lr": "0.2"}).startswith("train.lr")
    assert first_difference(there, there | {"resources.workers": "2"}).startswith("resources.workers")
    assert first_difference(there, there | {"output": "/x", "mlflow.uri": "x"}) is None
    newer = {"data.missing": "refuse", "resources.workers": "2", "train.lr": "0.1"}
    assert first_difference(there, newer).startswith("resources.workers")
    assert first_difference(there, there | {"data.missing": "refuse"}).startswith("data.missing: refuse here")


def test_where_a_models_file_lies_is_no_difference():
    there = {"clip.model": "/theirs/tiny.json", "clip.pretrained": "/theirs/w-1.safetensors", "train.lr": "1"}
    here = {"clip.model": "conf/tiny.json", "clip.pretrained": "/mine/w-1.safetensors", "train.lr": "2"}
    assert first_difference(there, here) == "train.lr: 2 here, 1 in the reference"
    assert first_difference(there, here | {"train.lr": "1"}) is None
    other = here | {"clip.pretrained": "/mine/w-2.safetensors"}
    wanted = "clip.pretrained: w-2.safetensors here, w-1.safetensors in the reference"
    assert first_difference(there, other) == wanted


def test_other_data_is_refused_by_its_counts_and_by_its_captions(world):
    _, card, annotations = world
    check_data(card, annotations)
    with pytest.raises(CardError, match=r"^data: the test split has 2 videos and 2 captions here, 3 and"):
        check_data(card, annotations.slice(0, 2))
    with pytest.raises(CardError, match=r"^data: the annotations are others \(\w{8} here"):
        check_data(card, table(["a", "b", "another"]))


def test_wilsons_interval_is_that_of_his_paper():
    low, high = wilson(0.5, 10)
    assert (round(low, 3), round(high, 3)) == (0.237, 0.763)
    assert wilson(0.0, 20)[0] == 0.0
    assert wilson(1.0, 20)[1] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numbers: [", "while parsing"),
        ("just words", "holds no card"),
        ("method: vop\nextra: 1", "config: field required"),
    ],
)
def test_a_card_that_cannot_be_read_is_refused_in_one_line(tmp_path, capsys, text, message):
    (tmp_path / "card.yaml").write_text(text)
    assert reproduce.main([str(tmp_path / "card.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_card_that_ships_is_whole_and_its_config_reads(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    card = read_card(path)
    config = read_config(card.config, [*card.overrides, f"data.root={tmp_path}"])
    assert [run.name for run in config.methods] == [card.method]
    assert {"t2v/R1", "v2t/R1"} <= card.numbers.keys()
    assert all(interval.holds(interval.value) for interval in card.numbers.values())
    assert yaml.safe_load(path.read_text())["settings"]["method.name"] == card.method
    assert not [value for value in card.settings.values() if value.startswith("/")], "a path of one machine"


def test_a_card_without_a_name_of_the_run_is_refused(capsys):
    assert reproduce.main(["--make", "x.yaml", str(Path("conf/quickstart.yaml"))]) == 2
    assert "--of: say which run" in capsys.readouterr().err
