"""A matrix of two worlds of shapes, each tuned on and both tested on, as a user runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support import ROOT

pytestmark = pytest.mark.long

SETTINGS = {
    "shapes": {"videos": 48, "twins": 6, "pretraining": {"steps": 2, "batch_size": 16}},
    "train": {"batch_size": 16, "epochs": 1},
    "video.max_failed": "5%",
    "resources.workers": 1,
    "evaluate.also": ["one", "other"],
}


@pytest.fixture
def matrix(tmp_path):
    """Two worlds, whose small CLIPs differ too."""
    configs = {}
    for seed, name in enumerate(("one", "other")):
        over = {"data.root": f"{tmp_path}/{name}", "shapes.seed": seed}
        configs[name] = {"file": "conf/quickstart.yaml", "set": over}
    said = {"name": "two", "output": f"{tmp_path}/out", "set": SETTINGS, "configs": configs}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(said | {"tables": {"main": {"methods": ["zero_shot", "bias"]}}}))
    return path


def run(matrix: Path) -> str:
    (ray := Path(f"/tmp/rt{os.getpid()}")).mkdir(exist_ok=True)  # Ray's sockets want a short path
    done = subprocess.run(
        [sys.executable, "pipelines/benchmark.py", str(matrix)],
        cwd=ROOT,
        env=os.environ | {"RAY_TMPDIR": str(ray)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_worlds_make_a_matrix_whose_numbers_are_those_of_the_ranks_on_disk(matrix):
    said = run(matrix)
    assert re.search(r"^zero_shot +one +\d+\.\d +\d+\.\d$", said, re.M)
    assert re.search(r"^bias +one +[+-]\d+\.\d \(.* to .*\) +[+-]\d+\.\d \(.* to .*\)$", said, re.M)
    assert re.search(r"^bias +other ", said, re.M)

    out = matrix.parent / "out"
    (file,) = (out / "history").glob("*.json")
    cells = json.loads(file.read_text())["cells"]
    assert len(cells) == 4
    captions = {}
    for cell in cells:
        ((elsewhere, name),) = cell["transfers"].items()
        assert {cell["tuned_on"], elsewhere} == {"one", "other"}
        table = pq.read_table(out / name)
        captions.setdefault(elsewhere, table["caption"].to_pylist())
        assert table["caption"].to_pylist() == captions[elsewhere]

        # no ties here: a hit is a rank of 1
        ranks = table["rank"].to_numpy()
        recall = cell["metrics"][f"transfer/{elsewhere}/t2v/R1"]
        assert recall == pytest.approx(100 * (ranks == 1).mean() + 50 * (ranks == 1.5).mean())
        assert 0 <= cell["metrics"]["upstream/R1"] <= 100
    assert captions["one"] != captions["other"]

    again = run(matrix)
    assert "0 finished now, 4 before, 0 failed" in again
    assert "Tuned on, tested on" in (out / "comparison.md").read_text()
