"""Files that are written whole or not at all, and what killed writers leave behind.

A file is written under a name that says which process writes it, and gets its own name when it is complete.
So anybody can tell at any time whether a half-written file still has a writer.
"""

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import psutil

# seconds without a write, where the writer is on another machine
ABANDONED_AFTER = 24 * 3600
WRITER = re.compile(r"\.?(?P<name>.*)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-\w+(?:\.part)?$")


@contextmanager
def written_whole(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """A path to write to; what it holds becomes `path` when the block ends without an error.

    The bytes are durable before the name is, so a power cut leaves no empty file. Makes the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{machine_id()}-{os.getpid()}-"
    handle, name = tempfile.mkstemp(
        prefix=prefix,
        suffix=".part",
        dir=path.parent,
    )
    os.close(handle)
    partial = Path(name)
    try:
        yield partial

        partial.chmod(mode)  # mkstemp makes it private
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file, whole or not at all; text as UTF-8."""
    content = data.encode() if isinstance(data, str) else data
    with written_whole(path) as partial:
        partial.write_bytes(content)


def sweep(folder: Path, beginning: str = "") -> None:
    """Delete half-written files of `folder` whose writer is gone, of names that begin so."""
    try:
        files = list(folder.glob(".*.part"))
    except OSError:
        return

    for file in files:
        if file.name.startswith(f".{beginning}") and is_abandoned(file):
            file.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether the process that a half-written file or a scratch folder names has ended."""
    match = WRITER.match(path.name)
    try:
        written = path.stat().st_mtime
    except OSError:  # somebody else has deleted it
        return False

    # of a process on another machine only its last write is known
    if match is None or match["machine"] != machine_id():
        return time.time() - written > ABANDONED_AFTER
    return not process_lives(int(match["pid"]), written)


def process_lives(pid: int, at: float) -> bool:
    """Whether the process that had this number at a time (seconds since 1970) still runs."""
    try:
        process = psutil.Process(pid)

        # one that began later has got the number of one that ended; a second is left for rounding
        is_same = process.create_time() <= at + 1
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it is there, and we may not ask
        return True


@lru_cache(maxsize=1)
def machine_id() -> str:
    """Eight characters for this machine; two containers of one machine, which do not see each other's
    processes, are two.
    """
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        namespace = ""

    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder on this machine's own disk; those of killed processes go first."""
    root = Path(tempfile.gettempdir()) / f"vopcore-scratch-{os.getuid()}"
    root.mkdir(exist_ok=True)
    for folder in root.iterdir():
        if is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)

    with tempfile.TemporaryDirectory(prefix=f"scratch.{machine_id()}-{os.getpid()}-", dir=root) as scratch:
        yield Path(scratch)
