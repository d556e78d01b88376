"""A folder that outlives its machine: what is pushed, what another machine fetches, and what stays behind."""

import sqlite3
import tempfile
from contextlib import closing

import pytest
from support.bucket import make_bucket, s3_server

from vopcore.storage import Mirror


@pytest.fixture
def bucket():
    with s3_server() as options:
        yield make_bucket("bucket", options), f"s3://bucket/out 1#2{options}"


@pytest.fixture
def on(bucket, tmp_path, monkeypatch):
    """The mirror of the bucket on a machine of that name."""

    def mirror(machine: str) -> Mirror:
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / machine))
        return Mirror(bucket[1])

    return mirror


def put(mirror: Mirror, **files: str) -> None:
    for name, content in files.items():
        path = mirror.folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def content(mirror: Mirror) -> dict[str, str]:
    paths = [path for path in mirror.folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(mirror.folder)): path.read_text() for path in paths}


def test_what_one_machine_has_pushed_another_fetches(on):
    first = on("first")
    assert first.fetch() is None
    put(first, results__a="1", history__b__c="2")
    first.push()
    second = on("second")
    assert second.fetch() == first.folder
    assert second.folder != first.folder
    assert content(second) == {"results/a": "1", "history/b/c": "2"}
    assert second.fetch() is None


def test_only_what_has_changed_is_sent_and_what_is_gone_goes(on, bucket):
    mirror = on("first")
    put(mirror, a="1", b="2", c="3")
    mirror.push()
    sent = []
    mirror.store.upload = lambda path, name, send=mirror.store.upload: (sent.append(name), send(path, name))
    put(mirror, b="22")
    (mirror.folder / "c").unlink()
    mirror.push()
    assert sorted(name for name in sent if name != "pushed.json") == ["b"]
    mirror.push()
    assert len(sent) == 2
    other = on("second")
    other.fetch()
    assert content(other) == {"a": "1", "b": "22"}
    assert not mirror.store.exists("c")


def test_what_is_newer_here_stays_and_what_is_newer_there_wins(on):
    first = on("first")
    put(first, a="1")
    first.push()
    put(first, a="not pushed, as its machine was killed")
    assert first.fetch() is None
    assert content(first)["a"].startswith("not pushed")
    second = on("second")
    second.fetch()
    put(second, a="2")
    second.push()
    assert first.fetch() == second.folder
    assert content(first) == {"a": "2"}
    assert (first.folder.with_name(f"{first.folder.name}.before") / "a").read_text().startswith("not pushed")


def test_a_database_is_copied_whole_while_it_is_written_to(on):
    first = on("first")
    first.folder.mkdir(parents=True)
    with closing(sqlite3.connect(first.folder / "runs.db")) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table runs (number)")
        database.execute("insert into runs values (7)")
        database.commit()
        database.execute("insert into runs values (8)")  # not committed, and in no copy
        first.push()
    second = on("second")
    second.fetch()
    assert [path.name for path in second.folder.iterdir() if path.name[0] != "."] == ["runs.db"]
    with closing(sqlite3.connect(second.folder / "runs.db")) as database:
        assert database.execute("select number from runs").fetchall() == [(7,)]
