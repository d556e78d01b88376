"""A password in every URI, and a search through all that is printed, logged and written."""

import logging
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.report import make_store

from pipelines import deliver, track
from pipelines import run as command
from pipelines.command.secrets import hides_secrets, without_secrets
from pipelines.experiment.identity import shared_settings
from vopcore.config import read_config

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("http://anna:hunter2@mlflow:5000/x", "http://mlflow:5000/x"),
        ("s3://KEY:a/b+c@bucket/shards?region=eu", "s3://bucket/shards?region=eu"),
        ("postgresql://anna:p@ss@host/db", "postgresql://host/db"),
        ("https://ghp_token@host/x", "https://host/x"),
        ("at 'http://anna:pw@a' and http://b:5000/y", "at 'http://a' and http://b:5000/y"),
        ("az://c/x?sig=abc%3D&se=2027", "az://c/x?sig=***&se=2027"),
        ("s3://b/x?access_key=K&secret_key=hunter2", "s3://b/x?access_key=***&secret_key=hunter2"),
        ("http://mlflow:5000/#/models/msrvtt@best", "http://mlflow:5000/#/models/msrvtt@best"),
        ("models:/msrvtt@best", "models:/msrvtt@best"),
        ("/data/a@b:c.mp4", "/data/a@b:c.mp4"),
        ("s3://bucket/v@1.mp4", "s3://bucket/v@1.mp4"),
    ],
)
def test_what_is_secret_in_a_uri_is_taken_out_and_the_rest_stays(text, safe):
    assert without_secrets(text) == safe
    assert without_secrets({"a": [text], "b": (text, 1)}) == {"a": [safe], "b": (safe, 1)}


def test_a_command_prints_logs_and_traces_back_no_secret(capsys):
    @hides_secrets
    def main() -> int:
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger("of a test").addHandler(handler)
        logging.getLogger("of a test").warning("at http://anna:hunter2@host")
        logging.getLogger("of a test").removeHandler(handler)
        print("see http://anna:hunter2@host/x")
        return 7

    assert main() == 7
    printed = capsys.readouterr()
    assert printed.out == "see http://host/x\n"
    assert printed.err == "at http://host\n"


def files_with(text: str, folder: Path) -> list[str]:
    """The files below `folder` that hold `text`, whatever they are."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [str(file.relative_to(folder)) for file in files if text.encode() in file.read_bytes()]


def test_a_password_is_in_no_file_that_tracking_writes(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://anna:{PASSWORD}@127.0.0.1:9"
    (tmp_path / "conf").mkdir()
    yaml = tmp_path / "conf/x.yaml"
    yaml.write_text(f"mlflow:\n  uri: {uri}\n")
    output = tmp_path / "output"
    output.mkdir()

    def log_everything(store: track.RunStore) -> None:
        run_id = track.start_run(store, "k", "n", {"mlflow.uri": uri}, {"shards": f"s3://K:{PASSWORD}@b/x"})
        track.log_config(store, run_id, yaml)
        track.log_data(store, run_id, "x", "1", f"s3://K:{PASSWORD}@b/v", {"test": {"videos": 1}})
        track.end_run(store, run_id, "FAILED", {"error": f"no bucket at s3://K:{PASSWORD}@b/x"})

    away = track.open_or_wait(uri, "x", output)
    log_everything(away)
    log_everything(make_store(output))
    assert "127.0.0.1:9" in caplog.text
    assert PASSWORD not in caplog.text
    assert files_with("s3://b/v", output)  # it is there, without the secret
    assert files_with(PASSWORD, output) == []

    with pytest.raises(track.StoreError) as error:
        track.open_store(uri, "x", output)
    assert PASSWORD not in str(error.value)
    assert PASSWORD not in " ".join(track.browse(uri, "1") + track.browse(uri, None))


def test_what_was_kept_is_delivered_with_the_password_of_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:{PASSWORD}@host:5000")
    assert deliver._with_its_password("http://host:5000") == f"http://anna:{PASSWORD}@host:5000"
    assert deliver._with_its_password("http://other:5000") == "http://other:5000"


def test_a_password_is_in_no_benchmark_json_and_a_new_one_is_the_same_benchmark(tmp_path):
    (tmp_path / "data").mkdir()
    places = [f"output={tmp_path}/out", f"data.root={tmp_path}/data"]
    first, second = (
        read_config(
            ROOT / "conf/msrvtt_9k.yaml",
            [*places, f"data.videos=s3://K:{secret}@b/v", f"storage=s3://K:{secret}@b/s"],
        )
        for secret in ("hunter2", "hunter3")
    )
    assert shared_settings(first) == shared_settings(second)
    assert "hunter2" not in str(shared_settings(first))


def test_a_refused_command_says_no_password(tmp_path, capsys):
    code = command.main(["conf/none.yaml", f"mlflow.uri=http://anna:{PASSWORD}@host", "x=http://a:pw@b"])
    printed = capsys.readouterr()
    assert code == 2
    assert PASSWORD not in printed.out + printed.err
