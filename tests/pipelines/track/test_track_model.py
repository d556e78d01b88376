"""The tuned method as an MLflow model: logged, kept while there is no server, loaded where vopcore is not."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from support import ROOT
from support.report import log_tuned, make_store
from support.tuned_model import CAPTIONS, LENGTHS, make

from pipelines import track
from pipelines.track.model import REQUIREMENTS

# Imported only for a CLIP of theirs, or for weights on a hub.
ON_DEMAND = {"timm", "transformers", "huggingface_hub", "lancedb"}
AWAY = "http://127.0.0.1:9"  # where nobody listens
USER = """
import json, sys
import mlflow
uri, run_id, paths, captions = json.loads(sys.argv[1])
mlflow.set_tracking_uri(uri)
version = mlflow.register_model(f"runs:/{run_id}/vop_p", "shapes").version
model = mlflow.pyfunc.load_model(f"models:/shapes/{version}")
found = model.predict({"caption": captions}, params={"top_k": 3})
import vopcore
print(json.dumps({
    "captions": model.predict([{"caption": caption} for caption in captions]).tolist(),
    "videos": model.predict({"video": paths}).tolist(),
    "example": model.predict(model.input_example).tolist(),
    "top": found["top"].tolist(),
    "code": vopcore.__file__,
    "modules": [name for name in sys.modules if "." not in name],
}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return make_store(tmp_path)


def model_of(store: track.RunStore):
    """The one model there is."""
    (model,) = store.client.search_logged_models([store.experiment_id])
    return model


def test_the_model_answers_where_there_is_no_vopcore_but_its_own(made, store, tmp_path):
    run_id = log_tuned(store, made.folder)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = json.dumps([store.uri, run_id, made.paths, CAPTIONS])
    done = subprocess.run(
        [sys.executable, "-c", USER, said], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(done.stdout.splitlines()[-1])
    assert Path(got["code"]).parent.parent.name == "code"
    assert not Path(got["code"]).is_relative_to(ROOT)
    assert not {"ray", "pipelines", "simplejpeg", "omegaconf"} & set(got["modules"])
    text = F.normalize(made.text, dim=-1).numpy()
    np.testing.assert_allclose(got["captions"], text, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got["example"], text[:1], rtol=0, atol=1e-6)
    vectors = made.retriever.vectors(made.video, made.mask)
    np.testing.assert_allclose(got["videos"], vectors, rtol=0, atol=1e-6)
    order = made.similarity.argsort(dim=1, descending=True)[:, :3]
    assert got["top"] == np.array(list(LENGTHS))[order].tolist()


def test_the_model_is_tied_to_its_run_with_settings_and_recall(made, store):
    run_id = log_tuned(store, made.folder)
    model = model_of(store)
    assert (model.name, model.status, model.source_run_id) == ("vop_p", "READY", run_id)
    assert model.params == {"train.lr": "0.1"}
    assert {metric.key: metric.value for metric in model.metrics} == {"t2v/R1": 41.5}
    run = store.client.get_run(run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert run.info.status == "FINISHED"
    assert [point.value for point in store.client.get_metric_history(run_id, "t2v/R1")] == [41.5]


def test_the_best_model_of_an_experiment_has_an_alias(made, store):
    for number, recall in enumerate([41.0, 43.0, 42.0]):
        tags = {"method": "vop_p"}
        run_id = track.start_run(store, f"vop_p-s{number}", f"vop_p seed {number}", {}, tags)
        track.log_metrics(store, run_id, {"t2v/R1": 50.0 - number, "val/t2v/R1": recall})
        track.end_run(store, run_id)
        track.log_model(store, run_id, "vop_p", made.folder, {"caption": CAPTIONS[0]}, {})
    best = store.client.get_model_version_by_alias("msrvtt_9k", "best")
    assert int(best.version) == 2
    assert best.tags["chosen_by"] == "val/t2v/R1"
    assert len(store.client.search_model_versions("name='msrvtt_9k'")) == 3


def test_a_model_that_no_server_took_is_delivered_later_and_stands_there_once(made, store, tmp_path):
    log_tuned(replace(store, uri=AWAY), made.folder)
    shutil.copytree(store.journal, tmp_path / "copy")
    track.deliver(store)
    shutil.copytree(tmp_path / "copy", store.journal, dirs_exist_ok=True)
    track.deliver(store)  # killed after the last call, before the files were cleared
    (run,) = track.runs(store)
    model = model_of(store)
    assert (model.source_run_id, model.status) == (run.id, "READY")
    said = Path(model.artifact_location.removeprefix("file://")) / "MLmodel"
    assert f"run_id: {run.id}\n" in said.read_text()
    assert len(store.client.get_run(run.id).outputs.model_outputs) == 1


def test_an_upload_that_broke_off_is_finished_by_the_next_delivery(made, store):
    artifacts = Path(
        store.client.get_experiment(store.experiment_id).artifact_location.removeprefix("file://")
    )
    artifacts.mkdir()
    (artifacts / "models").write_text("in the way")
    run_id = log_tuned(store, made.folder)
    assert model_of(store).status == "PENDING"
    assert track.waiting(store.journal) == [run_id]
    (artifacts / "models").unlink()
    track.deliver(store)
    assert model_of(store).status == "READY"
    assert track.runs(store)[0].status == "FINISHED"


def test_what_the_model_asks_for_is_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(REQUIREMENTS) - {"numpy"} <= set(project)
    names = {re.split(r"[>=\[]", requirement)[0] for requirement in REQUIREMENTS}
    modules = {"open_clip" if name == "open_clip_torch" else name for name in names}
    assert third_party("vopcore.tuned_model") <= modules | ON_DEMAND


def third_party(module: str, seen: set[str] | None = None) -> set[str]:
    """What a module of ours imports from others, through all of ours that it imports."""
    seen = set() if seen is None else seen
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in seen or not file.is_file():
        return set()
    seen.add(module)
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        ours = [name for name in names if name.split(".")[0] == "vopcore"]
        found |= {name.split(".")[0] for name in names if name not in ours} - set(sys.stdlib_module_names)
        found = found.union(*(third_party(name, seen) for name in ours))
    return found
