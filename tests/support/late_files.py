"""The local files as those of a bucket that answers late."""

import io
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from vopcore.shards import Shards
from vopcore.shards.readers import ArrowFiles
from vopcore.storage import ShardCache


class LateFile(io.FileIO):
    """A file of a bucket: each read calls `wait` first."""

    def __init__(self, path: str, wait: Callable[[], None]) -> None:
        super().__init__(path)
        self._wait = wait

    def read(self, size: int = -1) -> bytes:
        self._wait()
        return super().read(size)


class LateFiles(fs.FileSystemHandler):
    """What reading shards needs of a file system; `wait` is called before each read of an opened file."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self._local = fs.LocalFileSystem()

    def open_input_file(self, path):
        return pa.PythonFile(LateFile(path, self._wait), mode="r")

    def open_input_stream(self, path):
        return self._local.open_input_stream(path)

    def get_file_info(self, paths):
        return self._local.get_file_info(paths)

    def get_file_info_selector(self, selector):
        return self._local.get_file_info(selector)

    def get_type_name(self):
        return "late"

    def normalize_path(self, path):
        return path

    def __eq__(self, other):
        return self is other

    def __ne__(self, other):
        return self is not other

    __hash__ = None

    def _none(self, *arguments):
        raise NotImplementedError

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = _none
    copy_file = open_output_stream = open_append_stream = _none


class Together:
    """A wait that ends once `count` threads wait at the same time, and after 30 s."""

    def __init__(self, count: int) -> None:
        self.has_happened = threading.Event()
        self._barrier = threading.Barrier(count, action=self.has_happened.set)

    def __call__(self) -> None:
        if not self.has_happened.is_set():
            try:
                self._barrier.wait(timeout=30)
            except threading.BrokenBarrierError:  # so few read at once that nobody waits again
                return


def late_shards(folder: str | Path, scratch: Path, wait: Callable[[], None]) -> Shards:
    """The shards of a folder as of a bucket, of which the cache has no room for any."""
    shards = Shards(folder)
    shards._store.filesystem = fs.PyFileSystem(LateFiles(wait))
    shards._store.is_local = False
    shards._files = ArrowFiles(shards._store, ShardCache(scratch, gigabytes=0))
    return shards
