"""One writer per folder: a file that says who writes there, from which machine and since when.

On a disk the kernel's lock on that file decides, which ends with its process, whatever ends it. Where the
kernels of several machines do not share locks, and in object stores, which have none, the writer renews the
file again and again, and one that was not renewed for some minutes is stale. Readers never ask.
"""

import fcntl
import getpass
import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs

from vopcore.storage.store import Store
from vopcore.storage.whole import machine_id, process_lives

LOCK_NAME = ".writer"
RENEW_EVERY = 20.0  # seconds
STALE_AFTER = 180.0  # seconds without a renewal

# seconds in which the last of several that write to a bucket at once has won
SETTLE = 1.0


class LockedError(ValueError):
    """Somebody else writes to the folder; the message says who."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes to a folder. `since` in seconds since 1970."""

    user: str
    host: str
    machine: str
    pid: int
    command: str
    since: float
    token: str

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.user}'s process {self.pid} on {self.host} since {since} ({self.command})"


@contextmanager
def writer_lock(
    folder: str | Path,
    *,
    wait: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """Be the only one who writes to a folder, as long as the block runs.

    With `wait` until the other writer has ended, telling once who that is; else raises LockedError.
    """
    store = Store(folder)
    lock = _DiskLock(store) if store.is_local else _BucketLock(store)
    told_token = None
    while True:
        other = lock.take()
        if other is None:
            break
        line = f"{store} is being written by {other}"
        if not wait:
            raise LockedError(
                f"{line}: wait until it has ended, or choose another folder; that one was killed is noticed"
                f" after {STALE_AFTER / 60:g} minutes where it ran on another machine"
            )
        if told_token != other.token:
            tell(f"waiting: {line}")
            told_token = other.token
        time.sleep(1.0)

    try:
        with _renewed(lock):
            yield
    finally:
        lock.release()


def current_writer(folder: str | Path) -> Writer | None:
    """Who the folder's lock file names, be it alive or not; None where there is none."""
    return _written_writer(Store(folder))


def _this_process() -> Writer:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return Writer(
        user=user,
        host=socket.gethostname(),
        machine=machine_id(),
        pid=os.getpid(),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
        since=time.time(),
        token=uuid.uuid4().hex,
    )


class _DiskLock:
    """The lock of a local or shared disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = Path(store.path(LOCK_NAME))
        self._file: BinaryIO | None = None

    def take(self) -> Writer | None:
        """None if it is ours now, else who has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return _written_writer(self._store) or _unknown_writer()
        except OSError:  # a file system without locks: what the file says has to do
            pass

        other = _written_writer(self._store)
        if other is not None and not self._is_stale(other):
            file.close()
            return other
        # its last owner deleted it while we were waiting
        if not self._is_still_there(file):
            file.close()
            return self.take()

        self._file = file
        self._write(_this_process())
        return None

    def renew(self) -> None:
        os.utime(self._path)

    def release(self) -> None:
        with suppress(OSError):
            self._path.unlink()
        if self._file is not None:
            self._file.close()

    def _is_stale(self, other: Writer) -> bool:
        """Whether the writer that the file names has ended, though its kernel did not tell ours."""
        if other.machine == machine_id():
            return not process_lives(other.pid, other.since)
        with suppress(OSError):
            return time.time() - self._path.stat().st_mtime > STALE_AFTER
        return True

    def _is_still_there(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _write(self, writer: Writer) -> None:
        """Into the locked file itself: another one in its place would not be locked."""
        assert self._file is not None
        self._file.truncate(0)
        self._file.write(json.dumps(asdict(writer)).encode())
        self._file.flush()


class _BucketLock:
    """The lock of an object store: who wrote last, and is read by all after a while, has it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writer: Writer | None = None

    def take(self) -> Writer | None:
        """None if it is ours now, else who has it."""
        other = _written_writer(self._store)
        if other is not None and not self._is_stale(other):
            return other

        # several may see a free folder at once: all write, and the last one to write has it
        writer = _this_process()
        self._put(writer)
        time.sleep(SETTLE)
        winner = _written_writer(self._store)
        if winner is not None and winner.token != writer.token:
            return winner
        self._writer = writer
        return None

    def renew(self) -> None:
        if self._writer is not None:
            self._put(self._writer)

    def release(self) -> None:
        if self._writer is None:
            return
        with suppress(OSError):
            # another writer may have taken over in the meantime
            present = _written_writer(self._store)
            if present is not None and present.token == self._writer.token:
                self._store.delete(LOCK_NAME)

    def _put(self, writer: Writer) -> None:
        self._store.write(LOCK_NAME, json.dumps(asdict(writer)).encode())

    def _is_stale(self, other: Writer) -> bool:
        if other.machine == machine_id():
            return not process_lives(other.pid, other.since)

        path = self._store.path(LOCK_NAME)
        info = self._store.tried(lambda: self._store.filesystem.get_file_info(path))
        if info.type != fs.FileType.File:
            return True
        return time.time() - info.mtime_ns / 1e9 > STALE_AFTER


def _written_writer(store: Store) -> Writer | None:
    """What the lock file says; None where there is none, or a process was killed while it wrote it."""
    try:
        return Writer(**json.loads(store.read(LOCK_NAME)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return None


def _unknown_writer() -> Writer:
    """Somebody who has the lock and has not written yet who it is."""
    return Writer(
        user="somebody",
        host="some machine",
        machine="",
        pid=0,
        command="",
        since=time.time(),
        token="",
    )


@contextmanager
def _renewed(lock: _DiskLock | _BucketLock) -> Iterator[None]:
    """While the block runs, a thread shows that this writer is alive. That it cannot ends no work."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_EVERY):
            with suppress(OSError):
                lock.renew()

    thread = threading.Thread(
        target=renew,
        name="writer lock",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
