"""One writer per folder: a second one is told who writes there, and a dead one is in nobody's way."""

import json
import os
import subprocess
import sys
import threading

import pytest
from support import ROOT
from support.bucket import make_bucket, s3_server

from vopcore.storage import LockedError, Store, current_writer, writer_lock

HOLDER = """
import sys, time
from vopcore.storage import writer_lock
with writer_lock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as options:
        make_bucket("locks", options)
        yield f"s3://locks/out{options}"


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "out")
    return request.getfixturevalue("bucket")


@pytest.fixture
def holder(folder):
    """Another process that writes to the folder."""
    command = [sys.executable, "-c", HOLDER, folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_told_who_writes(folder, holder):
    with pytest.raises(LockedError) as caught, writer_lock(folder):
        pass
    assert f"process {holder.pid} on {os.uname().nodename} since " in str(caught.value)
    assert str(Store(folder)) in str(caught.value)
    assert current_writer(folder).pid == holder.pid, "the refused one changed nothing"


def test_a_killed_writer_is_in_nobodys_way(folder, holder):
    holder.kill()
    holder.wait()
    with writer_lock(folder):
        assert current_writer(folder).pid == os.getpid()
    assert current_writer(folder) is None


def test_the_same_process_cannot_write_twice(folder):
    with writer_lock(folder), pytest.raises(LockedError), writer_lock(folder):
        pass
    with writer_lock(folder):
        pass


def test_one_who_waits_hears_for_whom_and_comes_next(folder):
    lines, entered = [], threading.Event()

    def second():
        with writer_lock(folder, wait=True, tell=lines.append):
            entered.set()

    thread = threading.Thread(target=second)
    with writer_lock(folder):
        thread.start()
        while not lines:
            assert not entered.is_set()
    thread.join(timeout=60)
    assert entered.is_set()
    assert len(lines) == 1
    assert f"process {os.getpid()}" in lines[0]


def test_readers_do_not_ask(folder, holder):
    store = Store(folder)
    store.write("x", b"1")
    assert store.read("x") == b"1"


def test_another_machines_lock_is_stale_after_some_minutes(tmp_path, monkeypatch):
    other = {"user": "u", "host": "h", "machine": "0123abcd", "pid": 1, "command": "c", "since": 0.0}
    lock = tmp_path / ".writer"
    lock.write_text(json.dumps(other | {"token": "t"}))
    with pytest.raises(LockedError, match="u's process 1 on h"), writer_lock(tmp_path):
        pass
    monkeypatch.setattr("vopcore.storage.lock.STALE_AFTER", -1.0)
    with writer_lock(tmp_path):
        assert current_writer(tmp_path).pid == os.getpid()
