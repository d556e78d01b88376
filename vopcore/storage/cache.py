"""Shards of an object store, kept on this machine's disk, so that each crosses the network once.

All processes of the machine share one folder. A file there is named by the sha256 of its bytes, appears
when it is whole and has been checked, and is locked (flock, shared) by every process that reads it; so a
file that nobody has locked may go, the one opened longest ago first. Locks end with their process.
"""

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from vopcore.storage.hashing import file_sha256
from vopcore.storage.store import Store

log = logging.getLogger(__name__)

PIECE = 2**22  # bytes that are fetched at a time


class ShardCache:
    """At most `gigabytes` (10^9 bytes) of shards in `folder`, over all processes that use it."""

    def __init__(
        self,
        folder: str | Path | None = None,
        gigabytes: float = 100,
    ) -> None:
        self.folder = Path(folder or Path(tempfile.gettempdir()) / "vopcore-shards")
        self.limit = int(gigabytes * 1e9)
        self._is_full = False
        # the state of a copy that was found whole
        self._verified: dict[str, tuple[int, int, int]] = {}

    def open(
        self,
        store: Store,
        name: str,
        sha256: str,
    ) -> tuple[pa.NativeFile, BinaryIO | None]:
        """A file of a store, to be read anywhere in it, and what has to be kept open as long as it is.

        A local file is itself. A remote one comes from the cache, or where there is no room for it, as all
        else there is being read, from the store. A copy that is not what was written is fetched anew.
        Raises OSError where the file in the store is not what was written.
        """
        source = store.path(name)
        if store.is_local:
            return _mapped(source), None

        held = store.tried(lambda: self._hold(store.filesystem, source, sha256))
        if held is None:
            remote = store.tried(lambda: store.filesystem.open_input_file(source))
            return remote, None

        # a file that was just fetched was opened under the name it had until it was whole
        path = held.name.removesuffix(".part")
        return _mapped(path), held

    def _hold(
        self,
        filesystem: fs.FileSystem,
        source: str,
        sha256: str,
    ) -> BinaryIO | None:
        """The cached file, fetched if need be; locked until it is closed. None if there is no room for it."""
        path = self.folder / f"{sha256}.arrow"
        part = self.folder / f"{sha256}.arrow.part"
        while True:
            # what there is, and room for what there is not, is one decision for all processes
            with self._alone():
                cached = _shared(path)
                coming = None if cached else _exclusive(part)
                if coming:
                    num_bytes = filesystem.get_file_info(source).size
                    if not self._reserve(coming, num_bytes):
                        _drop(coming, part)
                        return None

            # fetching takes long, and happens outside of that
            if coming:
                try:
                    _fetch(coming, part, sha256, filesystem, source)
                except BaseException:
                    with self._alone():
                        _drop(coming, part)
                    raise

                with self._alone():
                    # the lock is of the file, whatever it is called; from here on others may read it too
                    part.replace(path)
                    fcntl.flock(coming, fcntl.LOCK_SH)
                    self._verified[sha256] = _state(path)
                return coming

            if cached is None:  # another process fetches it
                _wait(part)
            elif self._is_whole(path, sha256):
                _mark_used(path)
                return cached
            else:
                log.warning("%s is damaged: fetched anew", path)
                with self._alone():
                    _drop(cached, path)

    def _is_whole(self, path: Path, sha256: str) -> bool:
        """Whether a copy is what was written; read in full once per process, and again if it has changed."""
        state = _state(path)
        if self._verified.get(sha256) != state:
            if file_sha256(path) != sha256:
                return False
            self._verified[sha256] = state
        return True

    def _reserve(self, part: BinaryIO, num_bytes: int) -> bool:
        """Take `num_bytes` of the disk for `part` before another process counts what is free."""
        if not self._make_room(num_bytes):
            return False
        try:
            os.posix_fallocate(part.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._say_full("the disk has no room left")
            return False
        return True

    def _make_room(self, num_bytes: int) -> bool:
        """Delete what nobody reads, the longest unused first, until `num_bytes` fit."""
        files = sorted(
            self.folder.glob("*.arrow*"),
            key=lambda path: path.stat().st_atime,
        )
        sizes = {path: path.stat().st_size for path in files}
        excess = sum(sizes.values()) + num_bytes - self.limit
        for path in files:
            if excess <= 0:
                break

            # only a file that nobody reads can be locked
            unused = _exclusive(path)
            if unused is not None:
                _drop(unused, path)
                excess -= sizes[path]

        if excess > 0:
            self._say_full(f"resources.cache.gigabytes is {self.limit / 1e9:g}")
        return excess <= 0

    def _say_full(self, why: str) -> None:
        if not self._is_full:
            log.warning(
                "%s is full (%s): more shards are read over the network each time",
                self.folder,
                why,
            )
        self._is_full = True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process looks at or changes what files there are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _mark_used(path: Path) -> None:
    """By its time of access; the time of change is left alone, as it tells whether the copy was changed."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _mapped(path: str) -> pa.BufferReader:
    """A file as a view of its pages. It holds no descriptor, of which a process has few."""
    with pa.memory_map(path) as file:
        return pa.BufferReader(file.read_buffer())


def _fetch(
    part: BinaryIO,
    path: Path,
    sha256: str,
    filesystem: fs.FileSystem,
    source: str,
) -> None:
    """Copy a file into the open `part` at `path`. Raises OSError if it is not what was written."""
    with filesystem.open_input_stream(source) as stream:
        shutil.copyfileobj(stream, part, PIECE)
    part.flush()
    if file_sha256(path) != sha256:
        raise OSError(f"{source}: its content has changed since it was written (sha256 differs)")


def _shared(path: Path) -> BinaryIO | None:
    """The file, open and locked for reading; None if there is none."""
    if not path.is_file():
        return None
    file = path.open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _exclusive(path: Path) -> BinaryIO | None:
    """The file, made if there is none, locked for this one; None if somebody else has it."""
    file = path.open("r+b" if path.exists() else "w+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _wait(path: Path) -> None:
    """Until nobody writes `path` any more."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:  # done in the meantime
        pass


def _drop(file: BinaryIO, path: Path) -> None:
    path.unlink(missing_ok=True)
    file.close()
