"""Files are written whole or not at all, and leftovers go when nobody writes them any more."""

import os
import subprocess
import sys

import pytest
from support import ROOT

from vopcore.storage import sweep, write_whole, written_whole
from vopcore.storage.whole import machine_id, scratch_folder

WRITER = """
import sys, time
from pathlib import Path
from vopcore.storage import written_whole
with written_whole(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path):
    """Another process in the middle of writing `x`."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout.readline() == b"writing\n"
    yield process
    process.kill()
    process.wait()


def test_what_is_written_replaces_what_was_there(tmp_path):
    write_whole(tmp_path / "new folder" / "x", "é")
    write_whole(tmp_path / "new folder" / "x", b"two")
    assert (tmp_path / "new folder" / "x").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["x"]


def test_an_error_leaves_what_was_there(tmp_path):
    write_whole(tmp_path / "x", "one")
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "x") as partial:
        partial.write_bytes(b"tw" * (1 // 0))
    assert (tmp_path / "x").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_sweep_takes_only_what_has_no_writer(tmp_path, writer):
    sweep(tmp_path)
    assert len(list(tmp_path.glob(".x.*.part"))) == 1, "its writer lives"
    writer.kill()
    writer.wait()
    sweep(tmp_path, "y")
    assert len(list(tmp_path.glob(".x.*.part"))) == 1, "another name"
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_another_machine_writes_is_left_for_a_day(tmp_path):
    part = tmp_path / ".x.0123abcd-1-abc.part"
    part.touch()
    sweep(tmp_path)
    assert part.exists()
    old = part.stat().st_mtime - 25 * 3600
    os.utime(part, (old, old))
    sweep(tmp_path)
    assert not part.exists()


def test_scratch_folders_of_killed_processes_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as own:
        dead = own.parent / f"scratch.{machine_id()}-4194304-abc"
        dead.mkdir()
        with scratch_folder() as other:
            assert {path.name for path in own.parent.iterdir()} == {own.name, other.name}
    assert list(own.parent.iterdir()) == []
