"""The whole path as a user runs it: real videos, Ray and MLflow store; interrupted and resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file
from support import ROOT

from pipelines import run as cli
from vopcore.clip import load
from vopcore.methods import load_tuned, tuned

pytestmark = pytest.mark.usefixtures("short_lived_folder_of_ray")

SMALL = [
    "shapes.videos=48",
    "shapes.twins=6",
    "shapes.pretraining.steps=2",
    "shapes.pretraining.batch_size=16",
    "train.batch_size=16",
    "video.max_failed=5%",
]


def command(folder: Path, *overrides: str) -> list[str]:
    places = [f"output={folder}/out", f"data.root={folder}/shapes"]
    return [sys.executable, "pipelines/run.py", "conf/quickstart.yaml", *SMALL, *places, *overrides]


def run(
    folder: Path,
    *overrides: str,
    environment: Mapping[str, str] = os.environ,
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(folder, *overrides),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture
def run_here(own_ray, monkeypatch, capsys):
    """`run` in this process and on one Ray for all tests, as starting both takes longer than the rest."""
    monkeypatch.chdir(ROOT)

    def run_in_process(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
        arguments = command(folder, *overrides)
        code = cli.main(arguments[2:])
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run_in_process


def results(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in (folder / "out/results").glob("*.json")]
    return {result["method"]: result for result in found}


def recall(folder: Path) -> dict[str, dict[str, float]]:
    return {method: lasting(result["metrics"]) for method, result in results(folder).items()}


def lasting(metrics: dict[str, float]) -> dict[str, float]:
    """What must be the same however often a run was interrupted: everything but time and memory."""
    return {name: value for name, value in metrics.items() if not name.startswith(("seconds/", "memory/"))}


def shard_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out/shards").glob("*/*.arrow")}


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
    (start,) = re.findall(r"^ *mlflow ui .*$", done.stdout, re.M)
    assert start.endswith(f" --backend-store-uri sqlite:///{folder}/out/mlflow.db")


def test_broken_videos_are_counted_and_their_reasons_written(whole):
    folder, done = whole
    assert "62 videos: 60 ok, 0 damaged, 2 failed (62 decoded now" in done.stdout
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
    assert vop.data.params["train.lr"] == "0.01"
    assert vop.data.metrics["params/trainable"] == 10_752
    every_number = json.loads(Path(client.download_artifacts(vop.info.run_id, "metrics.json")).read_text())
    assert every_number["params/percent"] == pytest.approx(100 * 10_752 / every_number["params/total"])
    assert every_number == results(folder)["vop_p"]["metrics"]
    assert len([name for name in vop.data.metrics if not name.startswith("system/")]) <= 15
    assert 0 <= vop.data.metrics["t2v/R1"] <= vop.data.metrics["t2v/R5"] <= 100
    assert vop.data.metrics["queries/expected"] == 12
    steps = [m.step for m in client.get_metric_history(vop.info.run_id, "train/loss")]
    assert steps == list(range(1, 10))  # 48 videos in batches of 16, three times
    names = {a.path for a in client.list_artifacts(vop.info.run_id)}
    assert {"quickstart.yaml", "tuned", "predictions.parquet"} <= names
    assert runs["zero_shot"].data.metrics["params/trainable"] == 0


def test_a_finished_run_teaches_another_method_and_is_embedded_once(whole, run_here):
    folder, _ = whole
    run_id = results(folder)["vop_p"]["run_id"]
    taught = ["method.name=bias", "method.pooling=mean", "train.epochs=1", "mlflow.model=none"]
    for weight in (1, 20):
        teacher = f"train.distill={{teacher: runs:/{run_id}, weight: {weight}}}"
        done = run_here(folder, *taught, "run=taught", teacher)
        assert done.returncode == 0, done.stderr[-3000:]
    kept = sorted(path.name for path in (folder / "out/teacher").iterdir())
    assert len(kept) == 2  # one file of vectors, and the weights
    assert kept[0] == f"{run_id}.safetensors"
    vectors = load_file(folder / "out/teacher" / kept[1])
    assert vectors["text"].shape[0] == len({line["captions"][0] for line in captions_of(folder, "train")})
    assert vectors["video"].shape[0] == 48

    refused = run_here(folder, *taught, "train.distill.teacher=runs:/nosuchrun")
    assert refused.returncode == 2
    assert "train.distill.teacher" in refused.stderr.strip().splitlines()[-1]


def captions_of(folder: Path, split: str) -> list[dict]:
    """The videos of a split that can be decoded."""
    lines = (folder / "shapes/captions.jsonl").read_text().splitlines()
    broken = ("videos/truncated.mp4", "videos/not_a_video.mp4")
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["split"] == split and row["video"] not in broken]


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


def test_the_same_command_again_decodes_and_tunes_nothing_and_prints_the_same_table(whole, run_here):
    folder, first = whole
    before, shards = recall(folder), shard_files(folder)
    again = run_here(folder, "compare=[zero_shot,vop_p]", "train.epochs=3")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "(0 decoded now" in again.stdout
    assert "vop_p: finished before" in again.stdout
    assert table(again.stdout) == table(first.stdout)
    assert (recall(folder), shard_files(folder)) == (before, shards)


def test_recall_does_not_depend_on_the_number_of_workers(whole, run_here):
    folder, _ = whole
    before = recall(folder)["zero_shot"]
    alone = run_here(folder, "compare=[zero_shot]", "resources.workers=1", "run=alone")
    assert alone.returncode == 0, alone.stderr[-3000:]
    (path,) = (folder / "out/results").glob("zero_shot-s0-alone-*.json")
    assert lasting(json.loads(path.read_text())["metrics"]) == before
    path.unlink()


def test_a_run_that_diverges_ends_with_code_1_and_the_step_and_videos(whole, run_here):
    folder, _ = whole
    done = run_here(folder, "method.name=vop", "train.lr=1e30", "train.clip_grad=null")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"^error \(exit code 1\): .*step \d+: loss nan.* on videos videos/", last), last


def test_a_shard_that_was_changed_on_disk_is_found_by_the_verify_stage(whole, run_here):
    folder, _ = whole
    copy = folder / "copy"
    shutil.copytree(folder / "out/shards", copy / "shards")
    good = run_here(folder, "stages=[verify]", f"storage={copy}")
    assert good.returncode == 0, good.stderr[-2000:]
    assert "is what was written" in good.stdout
    shard = next(copy.glob("shards/*/*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-9] + b"123456789")
    bad = run_here(folder, "stages=[verify]", f"storage={copy}")
    assert bad.returncode == 1
    assert f"{shard}: its content has changed" in bad.stderr


def table(stdout: str) -> list[str]:
    lines = stdout.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("method ")) :]


@pytest.mark.long
def test_a_user_without_a_home_gets_the_same_numbers(whole, tmp_path):
    """As a service or a container is often started: whoever keeps something in the home must do without."""
    folder, _ = whole
    (tmp_path / "shapes").symlink_to(folder / "shapes")
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = run(tmp_path, "compare=[zero_shot]", environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert recall(tmp_path)["zero_shot"] == recall(folder)["zero_shot"]


@pytest.mark.long
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
