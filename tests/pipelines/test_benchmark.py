"""A benchmark as a user runs it: killed, resumed, rerun, compared; real Ray, real MLflow, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from support import ROOT

pytestmark = pytest.mark.long

SMALL = {
    "shapes": {"videos": 48, "twins": 6, "pretraining": {"steps": 2, "batch_size": 16}},
    "train": {"batch_size": 16, "epochs": 2},
    "video.max_failed": "5%",
    "resources.workers": 1,
}
TABLES = {
    "methods": {"methods": ["zero_shot", "vop"]},
    "broken": {"methods": ["vop"], "variants": {"wild": {"train": {"lr": 1e30, "clip_grad": None}}}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a benchmark with two cells that work and one that diverges; Ray's own folder is short-lived."""
    folder = tmp_path_factory.mktemp("benchmark")
    clips = {"file": "conf/quickstart.yaml", "set": {"data.root": f"{folder}/clips"}}
    said = {"name": "tiny", "output": f"{folder}/out", "set": SMALL, "configs": {"shapes": clips}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(said | {"tables": TABLES}))
    return folder


def start(folder: Path, *more: str) -> subprocess.Popen:
    (ray := Path(f"/tmp/rb{os.getpid()}")).mkdir(exist_ok=True)  # Ray's sockets want a short path
    return subprocess.Popen(
        [sys.executable, "pipelines/benchmark.py", f"{folder}/tiny.yaml", *more],
        cwd=ROOT,
        env=os.environ | {"RAY_TMPDIR": str(ray)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def results(folder: Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("out/shapes/*/results/*.json")}


def stamps(folder: Path) -> dict[str, int]:
    return {file.stem: file.stat().st_mtime_ns for file in folder.glob("out/shapes/*/results/*.json")}


def history(folder: Path) -> list[dict]:
    records = [json.loads(file.read_text()) for file in (folder / "out/history").glob("*.json")]
    return sorted(records, key=lambda record: record["ended"])


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """What it has started, but for Ray's agents: those notice only after a minute that they are alone."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if not is_agent(child)]


def is_agent(process: psutil.Process) -> bool:
    try:
        return "agent" in " ".join(process.cmdline()).lower()
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return False


@pytest.fixture(scope="module")
def resumed(folder):
    """Killed by -9 as soon as a cell is finished, then run to its end by the same command."""
    process, deadline = start(folder), time.monotonic() + 300
    while not results(folder):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)  # polling, not waiting for a guess
    processes = workers(process)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[0]
    gone, alive = psutil.wait_procs(processes, timeout=60)
    before = stamps(folder)
    done = finish(start(folder))
    return {"gone": len(gone), "alive": alive, "before": before, "said": said, "done": done}


def test_a_cell_more_than_there_is_room_for_waits_for_its_turn(resumed):
    assert resumed["said"].count("started   ") == 3  # of a CPU each; Ray has two


def test_nothing_of_a_killed_benchmark_is_left_running(resumed):
    assert resumed["gone"] > 5
    assert resumed["alive"] == []


def test_the_same_command_goes_on_and_runs_no_finished_cell_twice(folder, resumed):
    assert resumed["before"]
    assert resumed["before"].items() <= stamps(folder).items()
    _, out, err = resumed["done"]
    # whichever cell was the first to end; if it was killed while it told MLflow, that is finished now
    for key in resumed["before"]:
        method = key.split("-")[0]
        line = rf"^(before|finished) +methods: shapes {method}, seed 0: t2v R@1 [\d.]+"
        assert re.search(line, out, re.MULTILINE), err[-3000:]
    client = MlflowClient(f"sqlite:///{folder}/out/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("quickstart").experiment_id])
    assert len({run.data.tags["run_key"] for run in runs}) == len(runs)


def test_a_cell_that_fails_does_not_stop_the_others_and_gives_its_reason_and_code_1(folder, resumed):
    code, out, err = resumed["done"]
    assert code == 1, err[-3000:]
    assert re.search(r"^broken: shapes vop wild +0 +FAILED +vop: step \d+: loss nan", out, re.M), out
    assert re.search(
        r"^methods: shapes vop +0 +(finished|finished before) +[\d.]+ +[\d.]+ +\d+ +\d+$", out, re.M
    )
    assert {key.split("-")[0] for key in results(folder)} == {"zero_shot", "vop"}
    assert "There is no earlier round to compare with." in out
    assert err.strip().splitlines()[-1] == "error (exit code 1): failed: broken: shapes vop wild, seed 0"
    assert "Traceback" not in out + err


@pytest.fixture(scope="module")
def again(folder, resumed):
    """A forced rerun without the broken cell, one at a time, after the last round was made to look as if its
    zero_shot had found everything.
    """
    (old,) = [key for key in results(folder) if key.startswith("zero_shot")]
    (file,) = folder.glob(f"out/shapes/*/results/{old}.parquet")
    table = pq.read_table(file)
    column = table.schema.get_field_index("rank")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(np.ones(len(table)))), file)
    return finish(start(folder, "--rerun", "tables.broken=null", "at_once=1"))


def test_a_rerun_one_by_one_gives_the_same_numbers_as_the_killed_and_resumed_round(folder, again):
    assert re.search(r"^methods: shapes vop +1 +([\d.]+) +\1 +\+0\.0 +identical$", again[1], re.M), again[1]
    first, last = history(folder)
    (vop, redone) = (
        next(cell for cell in record["cells"] if cell["row"] == "methods: shapes vop")
        for record in (first, last)
    )
    same = {name for name in vop["metrics"] if not name.startswith(("seconds/", "memory/"))}
    assert {name: vop["metrics"][name] for name in same} == {name: redone["metrics"][name] for name in same}
    assert vop["run_id"] != redone["run_id"]


def test_a_planted_regression_ends_with_code_4_and_is_written_and_logged(folder, again):
    code, out, err = again
    assert code == 4, err[-3000:]
    assert re.search(r"^methods: shapes zero_shot .*WORSE$", out, re.M), out
    last = err.strip().splitlines()[-1]
    assert last == "regression (exit code 4): less is found than the last time: methods: shapes zero_shot"
    written = json.loads((folder / "out/comparison.json").read_text())
    assert {row["row"].split()[-1]: row["word"] for row in written["rows"]} == {
        "zero_shot": "worse",
        "vop": "identical",
    }
    assert "| WORSE |" in (folder / "out/comparison.md").read_text()
    client = MlflowClient(f"sqlite:///{folder}/out/mlflow.db")
    rounds = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert len(rounds) == 2
    assert rounds[0].data.metrics["rows/worse"] == 1
    assert {"comparison.md", "comparison.json"} <= {
        file.path for file in client.list_artifacts(rounds[0].info.run_id)
    }
