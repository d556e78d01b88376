"""`output: s3://...`: results outlive their machine, and the next one goes on with them."""

import re
import shlex
import shutil
import tempfile

import pyarrow.fs
import pytest
import yaml
from support import ROOT
from support.bucket import KEYS, make_bucket, s3_server
from support.cluster import corpus
from support.local_ray import local_ray

from pipelines import benchmark, report, run

pytestmark = pytest.mark.long

CONFIG = {
    "name": "small",
    "video": {"frames": 2, "size": 32, "max_failed": "20%"},
    "clip": {"model": str(ROOT / "conf/tiny_clip.json"), "pretrained": None, "words": 16},
    "methods": {"zero_shot": {}},
}


@pytest.fixture(scope="module", autouse=True)
def ray_with_keys():
    with local_ray(**KEYS):
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def config(tmp_path, clips):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(CONFIG | {"data": {"dataset": "folder", "root": str(clips)}}))
    return file


@pytest.fixture
def bucket():
    with s3_server() as options:
        yield make_bucket("bucket", options), options


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Has what follows happen on a machine of that name, which has nothing of the others'."""
    monkeypatch.chdir(tmp_path)

    def on(name: str) -> None:
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))

    return on


def names(filesystem, folder: str) -> set[str]:
    infos = filesystem.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))
    return {info.path.removeprefix(f"{folder}/") for info in infos if info.type == pyarrow.fs.FileType.File}


def test_another_machine_shows_the_results_and_opens_the_page(config, bucket, machine, tmp_path, capsys):
    filesystem, options = bucket
    output = f"output=s3://bucket/out{options}"
    machine("head")
    assert run.main([str(config), output]) == 0
    first = capsys.readouterr().out
    kept = names(filesystem, "bucket/out")
    assert {"mlflow.db", "benchmark.json", "pushed.json"} <= kept
    assert [name for name in kept if re.fullmatch(r"results/zero_shot-.*\.json", name)]
    assert [name for name in kept if re.fullmatch(r"results/zero_shot-.*\.parquet", name)]
    assert [name for name in kept if name.startswith("shards/")]
    (log,) = [name for name in kept if name.startswith("logs/")]
    with filesystem.open_input_stream(f"bucket/out/{log}") as stream:
        assert b"34 videos: " in stream.read()

    shutil.rmtree(tmp_path / "head")
    machine("next")
    assert run.main([str(config), output]) == 0
    again = capsys.readouterr().out
    assert "(0 decoded now" in again
    assert "zero_shot: finished before" in again
    assert re.search(r"^zero_shot .*$", again, re.M)[0] == re.search(r"^zero_shot .*$", first, re.M)[0]

    machine("laptop")
    (line,) = re.findall(r"^ +python pipelines/report.py (.*)$", again, re.M)
    arguments = shlex.split(line)
    assert arguments[-1].startswith("s3://bucket/out/mlflow.db?")
    assert report.main([*arguments, "--out", str(tmp_path / "page")]) == 0
    page = next((tmp_path / "page").glob("*.html")).read_text()
    assert "zero_shot" in page
    assert str(tmp_path / "head") not in page


def test_a_benchmark_goes_on_with_the_rounds_that_a_bucket_keeps(config, bucket, machine, tmp_path, capsys):
    filesystem, options = bucket
    matrix = tmp_path / "matrix.yaml"
    said = {
        "name": "tiny",
        "output": f"s3://bucket/rounds{options}",
        "configs": {"small": {"file": str(config)}},
    }
    config.write_text(config.read_text() + f"output: {tmp_path}/unused\n")
    matrix.write_text(yaml.safe_dump(said | {"tables": {"methods": {"methods": ["zero_shot"]}}}))
    machine("head")
    assert benchmark.main([str(matrix)]) == 0, capsys.readouterr().err
    kept = names(filesystem, "bucket/rounds")
    assert {"round.json", "comparison.html", "mlflow.db"} <= kept
    assert [name for name in kept if name.startswith("history/")]
    assert [name for name in kept if name.startswith("small/shards/")]

    machine("next")
    capsys.readouterr()
    assert benchmark.main([str(matrix)]) == 0
    assert re.search(r"^methods: small zero_shot +0 +finished before ", capsys.readouterr().out, re.M)
    assert not (tmp_path / "unused").exists()
