"""What the annotations must have: what is held out, what is refused, and what is left out."""

import json

import pytest
from support.experiment import table

from pipelines.experiment.annotations import annotations, hold_out, usable
from vopcore.config import ConfigError

TRAIN = [("train", f"v{i:02}", f"caption {c}") for i in range(20) for c in range(2)]


def test_the_held_out_share_is_whole_videos_the_same_each_time_and_nothing_of_test():
    whole = table(*TRAIN, ("test", "t", "x"))
    held = hold_out(whole, 0.25)
    assert held.equals(hold_out(whole, 0.25))
    splits = {}
    for split, video in zip(held["split"].to_pylist(), held["video"].to_pylist(), strict=True):
        splits.setdefault(video, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert sum(found == {"val"} for found in splits.values()) == 5
    assert splits["t"] == {"test"}
    assert held.drop_columns("split").equals(whole.drop_columns("split"))


def test_a_data_set_with_a_val_split_holds_nothing_out():
    with pytest.raises(ConfigError, match=r"data.holdout: the data set has a val split"):
        hold_out(table(*TRAIN, ("val", "a", "x")), 0.1)


def test_a_batch_larger_than_the_training_split_is_refused_before_decoding(config, tmp_path):
    lines = [{"video": f"{v}.mp4", "split": s, "captions": ["x"]} for v, s in (("a", "train"), ("b", "test"))]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ConfigError, match=r"train.batch_size: 32 is more than the 1 videos"):
        annotations(config())


def test_a_data_set_without_a_test_split_is_refused(config, tmp_path):
    (tmp_path / "a.mp4").touch()
    line = {"video": "a.mp4", "split": "train", "captions": ["x"]}
    (tmp_path / "captions.jsonl").write_text(json.dumps(line))
    with pytest.raises(ConfigError, match="no caption of the test split"):
        annotations(config())


def write_captions(folder, *splits: str) -> None:
    """A captions.jsonl with a video of each split, whose files are there and empty."""
    lines = []
    for number, split in enumerate(splits):
        lines.append({"video": f"{number}.mp4", "split": split, "captions": ["x"]})
        (folder / f"{number}.mp4").touch()
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_share_that_holds_no_video_out_is_refused_before_decoding(config, tmp_path):
    write_captions(tmp_path, *["train"] * 20, "test")
    with pytest.raises(ConfigError, match=r"^data.holdout: 1.00% of 20 training videos is less than one"):
        annotations(config("data.holdout=1%", "train.batch_size=8"))

    held = annotations(config("data.holdout=5%", "train.batch_size=8"))
    assert held["split"].to_pylist().count("val") == 1


@pytest.mark.parametrize("key", ["post_processing", "parity"])
def test_qb_norm_without_captions_to_train_on_is_refused_before_decoding(config, tmp_path, key):
    write_captions(tmp_path, "test")
    untrained = ["train.epochs=0", "method.name=zero_shot"]
    with pytest.raises(ConfigError, match=r"^evaluate: qb_norm compares with the captions of the train"):
        annotations(config(*untrained, f"evaluate.{key}=[qb_norm]"))
    assert annotations(config(*untrained)).num_rows == 1


SPLITS = [("train", "a", "x"), ("train", "b", "y"), ("val", "c", "x"), ("test", "d", "x")]


def test_a_val_split_of_which_nothing_was_decoded_is_left_out_and_named(config, capsys):
    rows = table(*SPLITS)
    two = config("train.batch_size=2")
    assert usable(two, rows, ["a", "b", "c", "d"]).equals(rows)
    assert capsys.readouterr().out == ""

    left = usable(two, rows, ["a", "b", "d"])
    assert left["split"].to_pylist() == ["train", "train", "test"]
    assert "no video of the val split can be decoded: nothing is measured on it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "decoded", "refused"),
    [
        (["train.lr=[1e-3,1e-2]"], ["a", "b", "d"], r"^train.lr: a search .* needs a val split"),
        (["train.lr=search"], ["a", "b", "d"], r"^train.lr: a search .* needs a val split"),
        (["train.epochs=0", "evaluate.post_processing=[qb_norm]"], ["c", "d"], r"^evaluate: qb_norm"),
        ([], ["a", "c", "d"], r"batch_size: 2 is more than the 1 videos"),
        ([], ["a", "b", "c"], r"no video of the test split can be decoded"),
    ],
)
def test_what_needs_rows_that_were_not_decoded_is_refused_before_tuning(config, overrides, decoded, refused):
    with pytest.raises(ConfigError, match=refused):
        usable(config("train.batch_size=2", *overrides), table(*SPLITS), decoded)
