"""Arrow files of a folder, read by many threads: opened when they are needed, closed when others are."""

import resource
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from vopcore.storage import ShardCache, Store

LOCAL_READERS = 4096  # a mapped file holds no descriptor
PREFETCH_THREADS = 4


class FileName(NamedTuple):
    """A file of the folder and what its content must be."""

    name: str
    sha256: str


class OpenFile(NamedTuple):
    """A reader, and what keeps its file in the cache."""

    reader: pa.RecordBatchFileReader
    held: BinaryIO | None

    def close(self) -> None:
        """Let go of the file; what was read of it stays."""
        if self.held is not None:
            self.held.close()


class ArrowFiles:
    """Record batches of the Arrow files of a store.

    A reader belongs to one thread while it reads, so threads wait for each other only to look up which
    readers are free. Of those that are free at most `capacity` stay open, the ones used last.
    """

    def __init__(
        self,
        store: Store,
        cache: ShardCache,
        capacity: int | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        # a quarter of the descriptors: others need some too
        self._capacity = capacity or (LOCAL_READERS if store.is_local else _descriptors() // 4)
        self._free: OrderedDict[FileName, list[OpenFile]] = OrderedDict()
        self._num_free = 0
        self._coming: set[FileName] = set()
        self._prefetchers: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def batch(self, file: FileName, row: int) -> pa.RecordBatch:
        """The record batch number `row` of a file; of a local or cached one it is a view of the file."""
        opened = self._take(file) or self._open(file)
        try:
            batch = self._store.tried(lambda: opened.reader.get_batch(row))
        except BaseException:
            opened.close()
            raise
        self._give_back(file, opened)
        return batch

    def prefetch(self, files: Iterable[FileName]) -> None:
        """Begin to bring files of an object store into the cache, in threads; returns at once."""
        if self._store.is_local:
            return

        with self._lock:
            # made when it is first needed: a local store has no use for it
            if self._prefetchers is None:
                self._prefetchers = ThreadPoolExecutor(
                    PREFETCH_THREADS,
                    thread_name_prefix="prefetch",
                )

            for file in dict.fromkeys(files):
                if file not in self._free and file not in self._coming:
                    self._coming.add(file)
                    self._prefetchers.submit(self._bring, file)

    def _bring(self, file: FileName) -> None:
        # Whoever needs the file meets the error again, and then it is the reader's.
        with suppress(OSError, ValueError):
            self._give_back(file, self._open(file))
        with self._lock:
            self._coming.discard(file)

    def _open(self, file: FileName) -> OpenFile:
        content, held = self._cache.open(self._store, file.name, file.sha256)
        reader = self._store.tried(lambda: pa.ipc.open_file(content))
        return OpenFile(reader, held)

    def _take(self, file: FileName) -> OpenFile | None:
        """A free reader of the file, which nobody else gets until it is given back."""
        with self._lock:
            readers = self._free.get(file)
            if not readers:
                return None

            self._num_free -= 1
            opened = readers.pop()
            if not readers:
                del self._free[file]
            return opened

    def _give_back(self, file: FileName, opened: OpenFile) -> None:
        surplus = []
        with self._lock:
            self._free.setdefault(file, []).append(opened)
            self._free.move_to_end(file)
            self._num_free += 1
            while self._num_free > self._capacity:
                _, readers = self._free.popitem(last=False)
                self._num_free -= len(readers)
                surplus += readers

        # closing may wait for a disk, and nobody should wait for that
        for reader in surplus:
            reader.close()


def _descriptors() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(soft, 64)
