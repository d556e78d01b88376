"""The whole path as a user runs it: real videos, Ray and MLflow store; interrupted, resumed, refused."""

import contextlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from mlflow import MlflowClient
from report_support import make_store
from safetensors.torch import load_file

from pipelines import run as cli
from vopcore.clip import load
from vopcore.datasets import shapes
from vopcore.methods import load_tuned, tuned

ROOT = Path(__file__).parent.parent
SMALL = [
    "shapes.clips=96",
    "shapes.twins=6",
    "shapes.upstream.steps=2",
    "shapes.upstream.batch_size=16",
    "train.batch_size=16",
    "video.max_failed=5%",
]


def command(folder: Path, *overrides: str) -> list[str]:
    places = [f"output={folder}/out", f"data.root={folder}/shapes"]
    return [sys.executable, "pipelines/run.py", "conf/quickstart.yaml", *SMALL, *places, *overrides]


@pytest.fixture(scope="module", autouse=True)
def short_lived_folder_of_ray():
    """Ray's sockets want a short path."""
    temporary = tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
    with temporary as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        yield


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(folder, *overrides),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )


def results(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in (folder / "out/results").glob("*.json")]
    return {result["method"]: result for result in found}


def recall(folder: Path) -> dict[str, dict[str, float]]:
    return {method: lasting(result["metrics"]) for method, result in results(folder).items()}


def lasting(metrics: dict[str, float]) -> dict[str, float]:
    """What must be the same however often a run was interrupted: everything but time and memory."""
    return {name: value for name, value in metrics.items() if not name.startswith(("seconds/", "memory/"))}


def shard_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out/shards").rglob("*.arrow")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One undisturbed run of two methods, whose leavings the tests below look at."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, "compare=[zero_shot,vop_p]", "train.epochs=3")


def test_the_run_ends_in_a_table_and_the_command_that_opens_the_ui(whole):
    folder, done = whole
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^zero_shot +0 +0 ", done.stdout, re.M)
    assert re.search(r"^vop_p +10,752 +0\.303 ", done.stdout, re.M)
    assert f"mlflow ui --backend-store-uri sqlite:///{folder}/out/mlflow.db" in done.stdout


def test_broken_videos_are_counted_and_their_reasons_written(whole):
    folder, done = whole
    assert "110 videos: 108 ok, 0 damaged, 2 failed (110 decoded now" in done.stdout
    (listed,) = (folder / "out/shards").rglob("failed.csv")
    text = listed.read_text()
    assert "truncated.mp4" in text
    assert "not_a_video.mp4" in text


def test_mlflow_holds_settings_counts_recall_and_curves_of_each_method(whole):
    folder, _ = whole
    client = MlflowClient(f"sqlite:///{folder}/out/mlflow.db")
    experiment = client.get_experiment_by_name("quickstart")
    runs = {r.data.tags["method"]: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"zero_shot", "vop_p"}
    vop = runs["vop_p"]
    assert vop.info.status == "FINISHED"
    assert vop.data.params["method.vision_prompts"] == "8"
    assert vop.data.params["train.lr"] == "0.005"
    assert vop.data.metrics["params/trainable"] == 10_752
    assert vop.data.metrics["params/percent"] == pytest.approx(
        100 * 10_752 / vop.data.metrics["params/total"]
    )
    assert 0 <= vop.data.metrics["t2v/R1"] <= vop.data.metrics["t2v/R5"] <= 100
    assert vop.data.metrics["queries/expected"] == 12
    steps = [m.step for m in client.get_metric_history(vop.info.run_id, "train/loss")]
    assert steps == list(range(1, 19))  # 96 clips in batches of 16, three times
    names = {a.path for a in client.list_artifacts(vop.info.run_id)}
    assert {"quickstart.yaml", "tuned", "predictions.parquet"} <= names
    assert runs["zero_shot"].data.metrics["params/trainable"] == 0


def test_the_tuned_weights_are_an_artifact_that_loads_on_the_frozen_clip(whole):
    folder, _ = whole
    client = MlflowClient(f"sqlite:///{folder}/out/mlflow.db")
    run_id = results(folder)["vop_p"]["run_id"]
    path = client.download_artifacts(run_id, "tuned/tuned.safetensors", str(folder))
    (weights,) = (folder / "out").glob("tiny_clip-*.safetensors")
    clip = load_tuned(load(str(ROOT / "conf/tiny_clip.json"), str(weights)), path)
    saved = load_file(path)
    assert {n: p.shape for n, p in tuned(clip).items()} == {n: t.shape for n, t in saved.items()}
    assert sum(t.numel() for t in saved.values()) == 10_752


def test_the_same_command_again_decodes_and_tunes_nothing_and_prints_the_same_table(whole):
    folder, first = whole
    before, shards = recall(folder), shard_files(folder)
    again = run(folder, "compare=[zero_shot,vop_p]", "train.epochs=3")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "(0 decoded now" in again.stdout
    assert "vop_p: finished before" in again.stdout
    assert table(again.stdout) == table(first.stdout)
    assert (recall(folder), shard_files(folder)) == (before, shards)


def test_recall_does_not_depend_on_the_number_of_workers(whole):
    folder, _ = whole
    before = recall(folder)["zero_shot"]
    alone = run(folder, "compare=[zero_shot]", "resources.workers=1", "run=alone")
    assert alone.returncode == 0, alone.stderr[-3000:]
    (path,) = (folder / "out/results").glob("zero_shot-s0-alone-*.json")
    assert lasting(json.loads(path.read_text())["metrics"]) == before
    path.unlink()


def test_a_run_that_diverges_ends_with_code_1_and_the_step_and_videos(whole):
    folder, _ = whole
    done = run(folder, "method.name=vop", "train.lr=1e30", "train.clip_grad=null")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"^error \(exit code 1\): .*step \d+: loss nan.* on videos videos/", last), last


def table(stdout: str) -> list[str]:
    lines = stdout.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("method ")) :]


def test_a_driver_killed_in_ingest_and_in_tuning_goes_on_to_the_same_numbers(whole, tmp_path):
    folder, _ = whole
    rendered = tmp_path / "shapes"
    rendered.symlink_to(folder / "shapes")
    out = tmp_path / "out"
    kill_when(tmp_path, lambda: any(out.glob("shards/*/0*.json")))
    kill_when(tmp_path, lambda: any(out.glob("runs/vop_p-*/checkpoint_*")))
    assert "vop_p" not in results(tmp_path)
    done = run(tmp_path, "compare=[zero_shot,vop_p]", "train.epochs=3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert recall(tmp_path) == recall(folder)
    assert shard_files(tmp_path) == shard_files(folder)
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("quickstart").experiment_id])
    assert sorted(r.data.tags["method"] for r in runs) == ["vop_p", "zero_shot"]


def kill_when(folder: Path, happened) -> None:
    """Start the command and kill -9 its driver as soon as `happened()`; wait until its Ray is gone too."""
    process = subprocess.Popen(
        command(folder, "compare=[zero_shot,vop_p]", "train.epochs=3"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)  # polling, not waiting for a guess
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def own_ray():
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(num_cpus=2, include_dashboard=False, runtime_env=environment, _temp_dir=folder)
        yield
        ray.shutdown()


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
    assert "clip.words: 99" in refused(capsys, config, "clip.words=99")
    assert "a val split" in refused(capsys, config, "train.lr=[1e-3,1e-2]")
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


def test_a_shard_that_was_changed_on_disk_is_found_by_the_verify_stage(whole):
    folder, _ = whole
    copy = folder / "copy"
    shutil.copytree(folder / "out/shards", copy / "shards")
    good = run(folder, "stages=[verify]", f"storage={copy}")
    assert good.returncode == 0, good.stderr[-2000:]
    assert "is what was written" in good.stdout
    shard = next(copy.rglob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-9] + b"123456789")
    bad = run(folder, "stages=[verify]", f"storage={copy}")
    assert bad.returncode == 1
    assert f"{shard}: its content has changed" in bad.stderr


def test_an_output_folder_of_another_config_is_refused_with_the_way_on(small, capsys):
    refused(capsys, f"{small}/mine.yaml", "data.videos=/tmp")  # claims nothing it could not use
    assert not (small / "out").exists()
    (small / "out").mkdir(exist_ok=True)
    (small / "out/benchmark.json").write_text(json.dumps({"name": "other"}))
    message = refused(capsys, f"{small}/mine.yaml")
    assert "belongs to another config (name is other, now mine)" in message
    assert "output=" in message


def test_a_database_of_another_mlflow_is_refused_before_anything_is_decoded(small, capsys):
    make_store(small)
    shutil.copy(small / "mlflow.db", small / "old.db")
    with contextlib.closing(sqlite3.connect(small / "old.db")) as database:
        database.execute("update alembic_version set version_num = 'bd07f7e963c5'")
        database.commit()
    message = refused(capsys, f"{small}/mine.yaml", "train.epochs=0", f"mlflow.uri=sqlite:///{small}/old.db")
    assert f"run 'mlflow db upgrade sqlite:///{small}/old.db'" in message
    assert not (small / "out/shards").exists()
