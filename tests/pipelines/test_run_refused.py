"""What run.py refuses, with which line and code, and what it leaves on the disk: nothing."""

import contextlib
import json
import shutil
import sqlite3

import numpy as np
import pytest
from support import ROOT
from support.report import make_store

from pipelines import run as cli
from vopcore.datasets import shapes


@pytest.fixture
def small(tmp_path):
    """A config of its own with a captions.jsonl that can be spoiled."""
    videos = tmp_path / "videos"
    videos.mkdir()
    line = {"video": "videos/a.mp4", "split": "test", "captions": ["a caption"]}
    (tmp_path / "captions.jsonl").write_text(json.dumps(line) + "\n")
    (videos / "a.mp4").write_text("not a video")
    (tmp_path / "mine.yaml").write_text(
        f"name: mine\noutput: {tmp_path}/out\ndata: {{dataset: folder, root: {tmp_path}}}\n"
        "video: {frames: 2, size: 32}\n"
        f"clip: {{model: {ROOT}/conf/tiny_clip.json, pretrained: null, words: 16}}\nmethods: {{vop: {{}}}}\n"
    )
    return tmp_path


def refused(capsys, *argv: str) -> str:
    assert cli.main(list(argv)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error (exit code 2): ")
    return lines[-1]


def test_a_mistake_in_the_config_is_refused_before_anything_is_written(small, capsys):
    assert "did you mean 'epochs'" in refused(capsys, f"{small}/mine.yaml", "train.epoch=1")
    assert "no such file" in refused(capsys, f"{small}/none.yaml")
    assert not (small / "out").exists()


def test_what_does_not_fit_the_model_is_refused_before_anything_is_written(small, capsys):
    config = f"{small}/mine.yaml"
    message = refused(capsys, config, "method.name=vop_f", "method.spatial_layers=9")
    assert "methods.vop_f.spatial_layers: 9" in message
    assert "4" in message
    assert "video.size: 48" in refused(capsys, config, "video.size=48")
    assert "video.size: 48 and 96, but" in refused(capsys, config, "video.size=[48,96]")
    assert "clip.words: 99" in refused(capsys, config, "clip.words=99")
    assert "a val split" in refused(capsys, config, "train.lr=[1e-3,1e-2]")
    assert "a val split" in refused(capsys, config, "train.lr=search")
    assert not (small / "out").exists()


def test_a_broken_line_of_captions_is_named_with_its_number(small, capsys):
    with (small / "captions.jsonl").open("a") as file:
        file.write('{"video": "videos/b.mp4", "split":\n')
    assert f"{small}/captions.jsonl:2" in refused(capsys, f"{small}/mine.yaml")
    assert not (small / "out/shards").exists()


def test_a_folder_without_one_of_its_videos_is_refused(small, capsys):
    (small / "videos/a.mp4").unlink()
    assert "none of the 1 videos" in refused(capsys, f"{small}/mine.yaml")


def test_a_folder_without_one_video_that_can_be_decoded_is_refused(small, capsys, own_ray):
    message = refused(capsys, f"{small}/mine.yaml", "video.max_failed=100%", "stages=[ingest]")
    assert "none of the 1 videos can be decoded" in message
    assert "failed.csv" in message
    assert "not_a_video" not in message


def test_too_many_failed_videos_end_the_run_with_code_3_and_a_summary(small, capsys, own_ray):
    more = {"video": "videos/b.mp4", "split": "train", "captions": ["a caption"]}
    with (small / "captions.jsonl").open("a") as file:
        file.write(json.dumps(more) + "\n")
    shapes.write_video(small / "videos/b.mp4", np.zeros((8, 32, 32, 3), np.uint8), "libx264", sound=False)
    assert cli.main([f"{small}/mine.yaml", "video.max_failed=10%", "stages=[ingest]"]) == 3
    error = capsys.readouterr().err
    assert "1 of 2 videos failed, more than max_failed (10.00%) allows" in error
    assert "Traceback" not in error


def test_what_is_missing_by_permission_is_told_under_the_table(small, capsys, own_ray):
    shapes.write_video(small / "videos/a.mp4", np.zeros((8, 32, 32, 3), np.uint8), "libx264", sound=False)
    with (small / "captions.jsonl").open("a") as file:
        for number, num_captions in ((1, 1), (2, 3)):
            captions = [f"caption {i}" for i in range(num_captions)]
            line = {"video": f"videos/gone{number}.mp4", "split": "test", "captions": captions}
            file.write(json.dumps(line) + "\n")
    config = [f"{small}/mine.yaml", "method.name=zero_shot"]
    assert cli.main(config) == 3
    assert "2 of 3 videos have no file (test 2 of 3)" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main([*config, "data.missing=allow"]) == 0
    table = capsys.readouterr().out.partition("\nmethod ")[2]
    assert "\ntest: 1 of 3 videos found; R@1 cannot exceed 20.0\n" in table  # one of five captions


def test_a_batch_larger_than_what_was_decoded_is_refused_before_tuning(small, capsys, own_ray):
    shapes.write_video(small / "videos/a.mp4", np.zeros((8, 32, 32, 3), np.uint8), "libx264", sound=False)
    with (small / "captions.jsonl").open("a") as file:
        for name in ("broken", "good"):
            (small / f"videos/{name}.mp4").write_bytes((small / "videos/a.mp4").read_bytes())
            line = {"video": f"videos/{name}.mp4", "split": "train", "captions": ["a caption"]}
            file.write(json.dumps(line) + "\n")
    (small / "videos/broken.mp4").write_text("not a video")
    overrides = ["train.batch_size=2", "video.max_failed=50%"]
    message = refused(capsys, f"{small}/mine.yaml", *overrides)
    assert "methods.vop.train.batch_size: 2 is more than the 1 videos there are to train on" in message


def test_an_output_folder_of_another_config_is_refused_with_the_way_on(small, capsys):
    refused(capsys, f"{small}/mine.yaml", "data.videos=/tmp")  # claims nothing it could not use
    assert not (small / "out").exists()
    (small / "out/shards").mkdir(parents=True)
    (small / "out/benchmark.json").write_text(json.dumps({"name": "other"}))
    message = refused(capsys, f"{small}/mine.yaml")
    assert "belongs to another config (name is other, now mine)" in message
    assert "output=" in message
    (small / "out/shards").rmdir()
    elsewhere = {"name": "other", "storage": "s3://bucket/shards"}  # which may hold hours of work
    (small / "out/benchmark.json").write_text(json.dumps(elsewhere))
    assert "belongs to another config" in refused(capsys, f"{small}/mine.yaml")


def test_an_output_folder_that_holds_nothing_yet_is_taken_over(small, capsys, own_ray):
    (small / "out").mkdir()
    (small / "out/benchmark.json").write_text(json.dumps({"name": "other"}))
    message = refused(capsys, f"{small}/mine.yaml", "video.max_failed=100%", "stages=[ingest]")
    assert "none of the 1 videos can be decoded" in message
    assert json.loads((small / "out/benchmark.json").read_text())["name"] == "mine"


def test_a_database_of_another_mlflow_is_refused_before_anything_is_decoded(small, capsys):
    make_store(small)
    shutil.copy(small / "mlflow.db", small / "old.db")
    with contextlib.closing(sqlite3.connect(small / "old.db")) as database:
        database.execute("update alembic_version set version_num = 'bd07f7e963c5'")
        database.commit()
    message = refused(capsys, f"{small}/mine.yaml", "train.epochs=0", f"mlflow.uri=sqlite:///{small}/old.db")
    assert f"run 'mlflow db upgrade sqlite:///{small}/old.db'" in message
    assert not (small / "out/shards").exists()
