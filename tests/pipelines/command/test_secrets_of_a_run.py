"""Keys and passwords in every URI of a config, whole commands, and a search through all that is left."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import fs
from support import ROOT
from support.bucket import make_bucket, s3_server
from support.cluster import config, corpus, free_port, shell_environment
from support.mlflow_server import MLflowServer

pytestmark = pytest.mark.long

KEY = "AKIAOFNOBODY"
PASSWORD = "hunter2"
SECRETS = (KEY, PASSWORD)


@pytest.fixture
def server(tmp_path) -> Iterator[MLflowServer]:
    (tmp_path / "server").mkdir()
    server = MLflowServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def leaks_of_a_folder(folder: Path) -> list[str]:
    """The files below `folder` in whose name or content a secret stands."""
    leaks = []
    for path in folder.rglob("*"):
        # sockets of Ray lie there too
        content = path.read_bytes() if path.is_file() else b""
        if any(secret in path.name or secret.encode() in content for secret in SECRETS):
            leaks.append(str(path))
    return leaks


def leaks_of_a_bucket(filesystem: fs.FileSystem, bucket: str) -> list[str]:
    """The same for what lies in a bucket."""
    leaks = []
    for info in filesystem.get_file_info(fs.FileSelector(bucket, recursive=True)):
        content = b""
        if info.type == fs.FileType.File:
            content = filesystem.open_input_stream(info.path).read()
        if any(secret in info.path or secret.encode() in content for secret in SECRETS):
            leaks.append(info.path)
    return leaks


@dataclass(frozen=True)
class Shell:
    """Where commands are run: no keys but those in the URIs, and all that is temporary in two folders."""

    temporary: Path
    ray: Path

    def code(self, command: str, *arguments: str) -> int:
        """The exit code of a command, whose output must hold no secret."""
        environment = shell_environment(
            RAY_AUTH_MODE="disabled",
            RAY_TMPDIR=str(self.ray),
            TMPDIR=str(self.temporary),
            HF_HUB_OFFLINE="1",
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
            AWS_ACCESS_KEY_ID="",
            AWS_SECRET_ACCESS_KEY="",
        )
        done = subprocess.run(
            [sys.executable, f"pipelines/{command}.py", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        printed = done.stdout + done.stderr
        print(command, done.returncode, printed[-3000:])
        assert not any(secret in printed for secret in SECRETS), printed
        return done.returncode


def write_configs(folder: Path, settings: dict[str, Any], output: Path) -> tuple[str, str]:
    """A run's file and a benchmark's of one cell of it, with the secrets in them, as a user would have it."""
    folder.mkdir()
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(settings))
    benchmark = folder / "rounds.yaml"
    rounds = {
        "name": "rounds",
        "output": str(output),
        "configs": {"small": {"file": str(file)}},
        "tables": {"methods": {"methods": ["zero_shot"]}},
    }
    benchmark.write_text(yaml.safe_dump(rounds))
    return str(file), str(benchmark)


def test_no_key_and_no_password_is_left_anywhere(tmp_path, server):
    clips = corpus(tmp_path / "clips")
    work = tmp_path / "work"
    settings = yaml.safe_load(config(work, clips, epochs=2).read_text())

    with s3_server() as options, tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as ray:
        filesystem = make_bucket("shelf", options)
        fs.copy_files(str(clips), "shelf/clips", destination_filesystem=filesystem)
        place = f"s3://{KEY}:{PASSWORD}@shelf"
        mlflow = server.uri.replace("://", f"://anna:{PASSWORD}@")
        settings["data"]["videos"] = f"{place}/clips{options}"
        settings["storage"] = f"{place}/storage{options}"
        settings["mlflow"] = {"uri": mlflow}
        file, benchmark = write_configs(tmp_path / "conf", settings, work / "rounds")
        shell = Shell(work, Path(ray))

        # what works
        assert shell.code("check_data", file) == 0
        assert shell.code("run", file) == 0
        assert shell.code("run", file) == 0
        assert shell.code("benchmark", benchmark) == 0
        uri = ["--uri", mlflow]
        assert shell.code("report", "small", *uri, "--out", f"{work}/report") == 0
        (shards,) = filesystem.get_file_info(fs.FileSelector("shelf/storage/shards"))
        frames = f"{place}/storage/shards/{shards.base_name}{options}"
        page = f"{work}/gallery.html"
        assert shell.code("gallery", "small", "vop_p", *uri, "--shards", frames, "--out", page) == 0
        assert shell.code("publish", "small/vop_p", *uri, "--to", f"{work}/published") == 0
        assert shell.code("export", file, frames, f"{work}/tars") == 0
        index = f"{place}/index{options}"
        clip = [f"clip={ROOT}/conf/tiny_clip.json", "pretrained=null"]
        tuned = [f"model={work}/published/tuned.safetensors", *clip]
        assert shell.code("index", f"{place}/clips{options}", f"index={index}", *tuned) == 0
        assert shell.code("search", index, "a red ball") == 0

        # what does not
        no_bucket = f"?endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=us-east-1"
        assert shell.code("run", file, f"storage={place}/x{no_bucket}") == 2
        assert shell.code("run", file, f"storage_={place}/storage{options}") == 2
        assert shell.code("search", f"{place}/nothing{options}", "a red ball") == 2
        assert shell.code("publish", "small/vop_p", *uri, "--to", "hub:nobody/nothing") == 2
        server.kill()
        alone = ["name=alone", f"output={work}/alone"]
        assert shell.code("run", file, *alone) == 0
        assert shell.code("report", "small", *uri, "--out", f"{work}/report") == 2
        server.start()

        assert leaks_of_a_folder(work) == []
        assert leaks_of_a_folder(tmp_path / "server") == []
        assert leaks_of_a_folder(Path(ray)) == []
        assert leaks_of_a_bucket(filesystem, "shelf") == []
