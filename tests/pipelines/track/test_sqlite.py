"""MLflow's SQLite file: in folders of any name, begun by two at once, with a deleted experiment."""

import shutil
import subprocess
import sys
import tempfile

import pytest
from support.bucket import make_bucket, s3_server
from support.report import make_store

from pipelines import track
from pipelines.track.sqlite import sqlite_file, sqlite_uri
from vopcore.storage import Mirror, below

BEGIN = """
import sys
from pathlib import Path
from pipelines import track
store = track.open_store(None, sys.argv[1], Path(sys.argv[2]))
print(store.experiment_id)
"""


@pytest.mark.parametrize("name", ["run #1", "a?b", "a%20b", "50% [x] (y)", "é", "a+b&c=d"])
def test_a_store_is_in_the_folder_it_is_named_for_and_nowhere_else(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    uri = sqlite_uri(folder / "mlflow.db")
    assert sqlite_file(uri) == folder / "mlflow.db"
    store = track.open_store(None, "msvd", folder)
    run_id = track.start_run(store, "key", "vop seed 0", {}, {})
    (tmp_path / "note.txt").write_text("kept")
    track.log_files(store, run_id, [tmp_path / "note.txt"])
    track.log_metrics(store, run_id, {"t2v/R1": 1.0})

    again = track.find_store(store.uri, "msvd")
    (tmp_path / "copies").mkdir()
    assert track.fetch(again, run_id, "note.txt", tmp_path / "copies").read_text() == "kept"
    assert track.runs(again)[0].metrics == {"t2v/R1": 1.0}
    assert {path.name for path in tmp_path.iterdir()} == {name, "note.txt", "copies"}
    assert (folder / "mlflow.db").is_file()


def test_a_question_mark_in_a_uri_that_cuts_its_path_is_refused(tmp_path):
    with pytest.raises(track.StoreError, match=r"a \? in a URI starts its options; write %3F"):
        track.open_store(f"sqlite:///{tmp_path}/a?b/mlflow.db", "msvd", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_that_begin_at_once_share_one_new_store(tmp_path):
    command = [sys.executable, "-c", BEGIN]
    pair = [
        subprocess.Popen(
            [*command, name, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    results = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], results
    assert {out.strip() for out, _ in results} == {"1", "2"}


def test_a_deleted_experiment_is_refused_before_any_work_with_the_way_back(tmp_path):
    store = make_store(tmp_path)
    store.client.delete_experiment(store.experiment_id)
    way = rf"'msrvtt_9k' is deleted in MLflow.*experiments restore --experiment-id {store.experiment_id}"
    with pytest.raises(track.StoreError, match=way):
        track.open_store(store.uri, "msrvtt_9k", tmp_path)
    with pytest.raises(track.StoreError, match=way):
        track.find_store(store.uri, "msrvtt_9k")
    store.client.restore_experiment(store.experiment_id)
    assert track.open_store(store.uri, "msrvtt_9k", tmp_path).experiment_id == store.experiment_id


def test_a_store_that_a_bucket_keeps_opens_on_another_machine_with_its_artifacts(tmp_path, monkeypatch):
    with s3_server() as options:
        make_bucket("bucket", options)
        place = f"s3://bucket/out{options}"
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "head"))
        (tmp_path / "head").mkdir()
        head = Mirror(place)
        head.folder.mkdir(parents=True)
        store = track.open_store(None, "small", head.folder)
        run_id = track.start_run(store, "key", "vop seed 0", {}, {"method": "vop"})
        (tmp_path / "note.txt").write_text("kept")
        track.log_files(store, run_id, [tmp_path / "note.txt"])
        head.push()

        shutil.rmtree(tmp_path / "head")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "laptop"))
        (tmp_path / "laptop").mkdir()
        found = track.find_store(below(place, "mlflow.db"), "small")
        assert str(tmp_path / "laptop") in found.uri
        assert track.fetch(found, run_id, "note.txt", tmp_path / "laptop").read_text() == "kept"
        with pytest.raises(track.StoreError, match=r"no results are kept at s3://bucket/none/mlflow\.db$"):
            track.find_store(f"s3://bucket/none/mlflow.db{options}", "small")
