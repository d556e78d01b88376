"""Logging to real MLflow stores that are there, go away, and come back."""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.report import make_store

from pipelines import deliver, track
from pipelines.experiment.provenance import code_version
from pipelines.experiment.runs import try_to_deliver

AWAY = "http://127.0.0.1:9"  # where nobody listens


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # nobody will listen the second time either
    return make_store(tmp_path)


def live(store: track.RunStore, folder: Path) -> str:
    """A whole run: settings, data, curves, a file, recall, its end."""
    run_id = track.start_run(store, "vop-s0-abc", "vop seed 0", {"train.lr": 0.1}, {"method": "vop"})
    track.log_data(store, run_id, "msvd", "1234", "/data/msvd", {"test": {"captions": 40, "videos": 10}})
    track.log_curves(store, run_id, [(step, {"train/loss": 3.0 - step}) for step in (1, 2, 3)])
    (folder / "note.txt").write_text("kept")
    track.log_files(store, run_id, [folder / "note.txt"], "notes")
    (folder / "note.txt").unlink()  # as a checkpoint's folder is gone
    track.log_metrics(store, run_id, {"t2v/R1": 41.5})
    track.end_run(store, run_id, tags={"gpu": "none"})
    return run_id


def assert_lived(store: track.RunStore, folder: Path) -> None:
    """Exactly what `live` logged is there, once."""
    (run,) = track.runs(store)
    assert (run.status, run.metrics["t2v/R1"], run.params) == ("FINISHED", 41.5, {"train.lr": "0.1"})
    assert run.name.startswith("vop seed 0 20")
    assert {"method": "vop", "gpu": "none", "run_key": "vop-s0-abc"}.items() <= run.tags.items()
    assert {"mlflow.user", "mlflow.source.name"} <= run.tags.keys()
    history = store.client.get_metric_history(run.id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 2.0), (2, 1.0), (3, 0.0)]
    assert track.fetch(store, run.id, "notes/note.txt", folder).read_text() == "kept"
    (data,) = store.client.get_run(run.id).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("msvd", "1234-test")
    assert json.loads(data.dataset.profile) == {"captions": 40, "videos": 10}
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "testing")]


def test_a_run_is_logged_as_it_goes(store, tmp_path):
    live(store, tmp_path)
    assert_lived(store, tmp_path)
    assert track.waiting(store.journal) == []


def test_the_same_key_goes_on_with_the_same_run_whatever_else_was_set(store, tmp_path):
    first = live(store, tmp_path)
    again = track.start_run(store, "vop-s0-abc", "vop seed 0", {"train.lr": 0.1, "output": "x"}, {})
    moved = track.start_run(store, "vop-s0-abc", "vop seed 0", {"train.lr": 0.1, "output": "y"}, {})
    assert first == again == moved
    (run,) = track.runs(store)
    assert (run.status, run.params["output"]) == ("RUNNING", "x")


def test_a_run_without_its_server_is_kept_whole_and_delivered_by_the_command_it_names(
    store, tmp_path, capsys
):
    away = replace(store, uri=AWAY)
    live(away, tmp_path)
    try_to_deliver(away)
    said = capsys.readouterr().out
    assert "Connection refused" in said
    assert f"python pipelines/deliver.py {tmp_path}/mlflow_waiting" in said
    assert deliver.main([store.journal]) == 2  # still away
    assert deliver.main([store.journal, "--uri", store.uri]) == 0
    assert_lived(store, tmp_path)
    assert deliver.main([store.journal]) == 2
    assert "nothing is waiting there" in capsys.readouterr().err


def test_what_is_delivered_twice_stands_there_once(store, tmp_path):
    live(replace(store, uri=AWAY), tmp_path)
    shutil.copytree(store.journal, tmp_path / "copy")
    track.deliver(store)
    shutil.copytree(tmp_path / "copy", store.journal, dirs_exist_ok=True)
    track.deliver(store)  # killed after the last call, before the files were cleared
    assert_lived(store, tmp_path)


def test_a_store_that_goes_away_in_the_middle_misses_nothing_in_the_end(store, tmp_path):
    database = tmp_path / "mlflow.db"
    run_id = track.start_run(store, "vop-s0-abc", "vop seed 0", {}, {})
    track.log_curves(store, run_id, [(1, {"train/loss": 1.0})])
    database.rename(tmp_path / "safe")
    database.write_text("no database " * 100)
    track.log_curves(store, run_id, [(2, {"train/loss": 2.0})])
    database.unlink()
    (tmp_path / "safe").rename(database)
    track.log_curves(store, run_id, [(3, {"train/loss": 3.0})])  # waits behind the one before
    assert track.curve(store, run_id, "train/loss") == [(1, 1.0)]
    assert track.waiting(store.journal) == [run_id]
    track.deliver(store)
    assert track.curve(store, run_id, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_line_that_a_killed_process_left_half_written_is_skipped(store, tmp_path):
    live(replace(store, uri=AWAY), tmp_path)
    (calls,) = Path(store.journal).glob("*/calls.jsonl")
    calls.write_text(calls.read_text() + '["metrics", [["t2v/R1", 0.')
    track.deliver(store)
    assert_lived(store, tmp_path)


def test_a_server_that_was_never_there_gets_the_whole_run_later(store, tmp_path, caplog):
    with pytest.raises(track.ServerAwayError, match=rf"^MLflow at {AWAY}: [^\n]*Connection refused[^\n]*$"):
        track.open_store(AWAY, "msrvtt_9k", tmp_path)
    away = track.open_or_wait(AWAY, "msrvtt_9k", tmp_path)
    assert f"all it should have is kept in {store.journal}" in caplog.text
    live(away, tmp_path)
    assert deliver.main([store.journal, "--uri", store.uri]) == 0
    assert_lived(store, tmp_path)


def test_a_server_that_comes_back_finds_its_experiment_not_the_default_one(store, tmp_path):
    live(replace(store, experiment_id=None), tmp_path)  # away when it was opened, there when it is called
    assert track.runs(store) == track.runs(replace(store, experiment_id="0")) == []
    track.deliver(replace(store, experiment_id=None))
    assert_lived(store, tmp_path)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, track.StoreError), (404, track.StoreError), (503, track.ServerAwayError)]
)
def test_a_server_that_refuses_is_a_mistake_and_one_that_fails_may_recover(
    status, kind, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(track.StoreError, match=rf"^[^\n]*{status}[^\n]*$") as error:
            track.open_store(f"http://127.0.0.1:{server.server_port}", "msvd", tmp_path)
        server.shutdown()
    assert type(error.value) is kind


def test_the_experiment_opens_on_its_runs_with_recall_and_costs_best_first(store):
    tags = store.client.get_experiment(store.experiment_id).tags
    view = json.loads(tags["mlflow.sharedViewState.recall"])
    assert view["orderByKey"] == view["selectedColumns"][0] == "metrics.`t2v/R1`"
    start, page = track.browse(store.uri, store.experiment_id)
    assert start == f"mlflow ui --port 5000 --workers 1 --backend-store-uri {store.uri}"
    assert page == f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/runs?viewStateShareKey=recall"
    assert track.browse("http://mlflow:80", "7") == [
        "http://mlflow:80/#/experiments/7/runs?viewStateShareKey=recall"
    ]
    assert track.browse("http://mlflow:80", None) == ["http://mlflow:80"]


def test_a_run_shows_the_numbers_that_matter_rounded_and_keeps_all_of_them(store, tmp_path):
    metrics = {"t2v/R1": 41.23456, "t2v/R1_low": 38.2, "t2v/R1_high": 44.1, "v2t/R50": 90.123, "v2t/R1": 40.0}
    metrics |= {"params/trainable": 122_880, "params/percent": 0.0812, "seconds/tune": 190.4}
    tags = {"method": "vop", "dataset": "msvd", "seed": "0"}
    run_id = track.start_run(store, "vop-s0", "vop seed 0", {}, tags)
    epoch = [(1, {"train/loss": 2.0, "train/lr": 0.1}), (2, {"train/loss": 1.0, "train/lr": 0.05})]
    track.log_training(store, run_id, epoch)
    track.log_results(store, run_id, metrics, 2)
    track.end_run(store, run_id)

    (run,) = track.runs(store)
    assert run.metrics["t2v/R1"] == 41.23
    assert "v2t/R50" not in run.metrics
    assert "train/lr" not in run.metrics
    assert len(run.metrics) <= 15
    assert track.with_all_metrics(store, run).metrics["v2t/R50"] == 90.123
    assert track.with_all_metrics(store, run).metrics["t2v/R1"] == 41.23456
    assert (run.tags["trainable"], run.tags["tuning time"]) == ("122,880 (0.081%)", "3 min")
    assert "R@1 **41.2%** (95%: 38.2 to 44.1)" in run.tags["mlflow.note.content"]
    file = track.fetch(store, run_id, "curves/from_step_000001.jsonl", tmp_path)
    assert [json.loads(line)["train/lr"] for line in file.read_text().splitlines()] == [0.1, 0.05]
    note = store.client.get_experiment(store.experiment_id).tags["mlflow.note.content"]
    assert "| vop | 0 | 41.2 | 122,880 (0.081%) | 3 min |" in note
    assert "on msvd, best" in note


@pytest.mark.parametrize(
    ("percent", "said"), [(100.0, "100%"), (99.6, "100%"), (12.34, "12%"), (9.4255, "9.4%")]
)
def test_a_share_is_said_in_digits_and_a_folder_by_the_name_of_its_config(store, percent, said):
    tags = {"method": "full", "dataset": "folder", "benchmark": "my_cats", "seed": "0"}
    run_id = track.start_run(store, f"full-{percent}", "full seed 0", {}, tags)
    metrics = {"t2v/R1": 50.0, "params/trainable": 3_535_041, "params/percent": percent}
    track.log_results(store, run_id, metrics, 1)
    track.end_run(store, run_id)

    tags = store.client.get_run(run_id).data.tags
    assert tags["trainable"] == f"3,535,041 ({said})"
    assert tags["mlflow.note.content"].startswith("**full** on my_cats, seed 0")
    note = store.client.get_experiment(store.experiment_id).tags["mlflow.note.content"]
    assert "on my_cats, best" in note


FULL_DISK = """
import resource, sys
from pathlib import Path
from pipelines import track
store = track.open_store(sys.argv[1], "msrvtt_9k", Path(sys.argv[2]))
run_id = track.start_run(store, "vop-s0", "vop seed 0", {}, {})
size = Path(sys.argv[2], "mlflow.db").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
for epoch in range(40):
    points = [(100 * epoch + step, {f"train/loss{n}": 1.0 for n in range(10)}) for step in range(100)]
    track.log_curves(store, run_id, points)
track.end_run(store, run_id)
print("ended")
"""


def test_a_store_that_cannot_grow_ends_no_run_and_says_so_in_lines(store, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, store.uri, tmp_path]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.stdout == "ended\n", process.stderr[-2000:]
    lines = process.stderr.strip().splitlines()
    assert len(lines) <= 3, process.stderr[-2000:]
    assert "what it misses is kept in" in lines[0]


def test_the_machine_is_watched_while_a_run_lasts(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    run_id = track.start_run(store, "vop-s0-abc", "vop seed 0", {}, {})
    deadline = time.monotonic() + 60
    with track.watch_machine(store, run_id):
        while "system/cpu_utilization_percentage" not in (track.runs(store)[0].metrics):
            assert time.monotonic() < deadline
    assert track.runs(store)[0].metrics["system/system_memory_usage_megabytes"] > 0


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_code_version_is_the_commit_and_says_where_files_differ_from_it(tmp_path):
    (tmp_path / "code.py").write_text("1")
    assert code_version(tmp_path).startswith(("vopcore ", "unknown"))
    git(tmp_path, "init")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert code_version(tmp_path) == head
    (tmp_path / "code.py").write_text("2")
    assert code_version(tmp_path) == f"{head}-changed"
