"""A mistake that a config or a folder alone tells is told before torch or Ray is loaded."""

import json
import subprocess
import sys

import pytest
from support import ROOT

CONFIG = """
name: mine
output: {folder}/out
data: {{dataset: msvd, root: {folder}}}
video: {{frames: 2, size: 32}}
clip: {{model: {root}/conf/tiny_clip.json, pretrained: null, words: 16}}
methods: {{vop: {{}}, lora: {{rank: 4}}}}
"""
PROGRAM = """
import runpy, sys
sys.argv = {argv}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    loaded = {slow} & set(sys.modules)
    print(end.code, *sorted(loaded), file=sys.stderr)
"""
SLOW = {"torch", "ray", "open_clip", "mlflow", "av"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(CONFIG.format(folder=tmp_path, root=ROOT))
    return tmp_path


def ended(*argv: str) -> tuple[str, str, str]:
    """What a command prints, its last line of errors, and `code module ...` with the slow ones it loaded."""
    program = PROGRAM.format(argv=list(argv), slow=SLOW)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    *errors, modules = done.stderr.strip().splitlines()
    return done.stdout, errors[-1] if errors else "", modules


@pytest.mark.parametrize("command", ["run", "check_data"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.name=vip", "methods: unknown method 'vip'; did you mean 'vpt'?"),
        ("methods.vop.prompts=4", "methods.vop.prompts: unknown key; did you mean 'text_prompts'?"),
        ("methods.lora.rank=many", "methods.lora.rank: must be an integer, got 'many'"),
        ("methods.vop_c={context: gru}", "methods.vop_c.context: must be 'bilstm', 'lstm' or 'transformer'"),
        ("data.root=/none/at/all", "data.root: no such folder: /none/at/all"),
        ("resources.workers=3", "train.batch_size: 32 does not divide over resources.workers = 3"),
        ("methods.vop.train.augment=1.5", "methods.vop.train.augment: must be true or false, got 1.5"),
    ],
)
def test_a_mistake_in_a_config_is_told_without_torch(folder, command, override, message):
    _, error, modules = ended(f"pipelines/{command}.py", f"{folder}/mine.yaml", override)
    assert message in error
    assert modules == "2"


def test_annotations_that_cannot_be_read_are_reported_without_torch(folder):
    report, _, modules = ended("pipelines/check_data.py", f"{folder}/mine.yaml", "--json")
    (error,) = json.loads(report)["errors"]
    assert "train_list.txt" in error
    assert modules == "1"


def test_a_report_on_data_loads_no_ray(folder):
    (folder / "captions.jsonl").write_text('{"video": "a.mp4", "split": "test", "captions": ["a cat"]}\n')
    argv = ["pipelines/check_data.py", f"{folder}/mine.yaml", "data.dataset=folder"]
    report, _, modules = ended(*argv)
    assert "NOT usable" in report
    assert modules == "1 av open_clip torch"


def test_a_mistake_in_the_last_cell_of_a_benchmark_is_told_without_torch(folder):
    matrix = {
        "name": "many",
        "output": f"{folder}/many",
        "configs": {"mine": {"file": f"{folder}/mine.yaml"}},
        "tables": {"all": {"variants": {"good": {}, "bad": {"method.alpha": "high"}}, "methods": ["lora"]}},
    }
    (folder / "many.yaml").write_text(json.dumps(matrix))
    _, error, modules = ended("pipelines/benchmark.py", f"{folder}/many.yaml")
    assert "all: mine lora bad:" in error
    assert "methods.lora.alpha: must be a number, got 'high'" in error
    assert modules == "2"


def test_a_folder_that_cannot_be_indexed_is_told_without_torch():
    _, error, modules = ended("pipelines/index.py", "/none/at/all")
    assert "/none/at/all: no such folder" in error
    assert modules == "2"
