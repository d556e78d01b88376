"""What the annotations must have: what is held out, what is refused, and what is left out."""

import json

import pytest
from support.experiment import table

from pipelines.experiment.annotations import annotations, hold_out
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
