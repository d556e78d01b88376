"""Before any work: what is held out, what an output folder remembers, what the data must have."""

import json

import pyarrow as pa
import pytest

from pipelines.experiment import prepare
from vopcore.config import ConfigError, read_config
from vopcore.datasets import ANNOTATIONS

TINY = "clip: {model: conf/tiny_clip.json, pretrained: null, words: 16}\nvideo: {frames: 2, size: 32}\n"


def table(*rows):
    return pa.Table.from_pylist(
        [dict(zip(("split", "video", "caption"), row, strict=True)) for row in rows], schema=ANNOTATIONS
    )


TRAIN = [("train", f"v{i:02}", f"caption {c}") for i in range(20) for c in range(2)]


def test_the_held_out_share_is_whole_videos_the_same_each_time_and_nothing_of_test():
    whole = table(*TRAIN, ("test", "t", "x"))
    held = prepare.hold_out(whole, 0.25)
    assert held.equals(prepare.hold_out(whole, 0.25))
    splits = {}
    for split, video in zip(held["split"].to_pylist(), held["video"].to_pylist(), strict=True):
        splits.setdefault(video, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert sum(found == {"val"} for found in splits.values()) == 5
    assert splits["t"] == {"test"}
    assert held.drop_columns("split").equals(whole.drop_columns("split"))


def test_a_data_set_with_a_val_split_holds_nothing_out():
    with pytest.raises(ConfigError, match=r"data.holdout: the data set has a val split"):
        prepare.hold_out(table(*TRAIN, ("val", "a", "x")), 0.1)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\noutput: {tmp_path}/out\ndata: {{dataset: folder, root: {tmp_path}}}\n"
        f"{TINY}methods: {{vop: {{}}}}\n"
    )
    return lambda *overrides: read_config(path, overrides)


def test_an_output_folder_takes_other_methods_and_seeds_of_its_benchmark_and_nothing_else(config, tmp_path):
    prepare.claim_output(config(), table(("test", "a", "x")))
    (tmp_path / "out/shards").mkdir()
    prepare.check_output(config("seed=3", "method.name=full", "train.epochs=9"))
    prepare.check_output(config("video.max_failed=50%", "video.time_limit=9"))  # change no frame
    for override in ("video.frames=3", "clip.words=12", "name=other"):
        with pytest.raises(ConfigError, match=rf"belongs to another config \({override.split('=')[0]} is"):
            prepare.check_output(config(override))


def test_an_output_folder_that_cannot_be_written_is_one_line(config):
    with pytest.raises(ConfigError, match=r"output: cannot write to /proc/none: "):
        prepare.claim_output(config("output=/proc/none"), table(("test", "a", "x")))


def test_a_batch_larger_than_the_training_split_is_refused_before_decoding(config, tmp_path):
    lines = [{"video": f"{v}.mp4", "split": s, "captions": ["x"]} for v, s in (("a", "train"), ("b", "test"))]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ConfigError, match=r"train.batch_size: 32 is more than the 1 videos"):
        prepare.annotations(config())


def test_videos_without_a_file_are_listed_once_each(config, tmp_path, capsys):
    rows = table(("test", "a", "x"), ("test", "a", "y"), ("train", "b", "z"))
    prepare.claim_output(config(), rows)
    assert (tmp_path / "out/missing.txt").read_text() == "a\nb\n"
    assert "2 videos of the annotations have no file" in capsys.readouterr().out


def test_a_data_set_without_a_test_split_is_refused(config, tmp_path):
    (tmp_path / "a.mp4").touch()
    line = {"video": "a.mp4", "split": "train", "captions": ["x"]}
    (tmp_path / "captions.jsonl").write_text(json.dumps(line))
    with pytest.raises(ConfigError, match="no caption of the test split"):
        prepare.annotations(config())
