"""A folder on a disk or in an object store, where a file is either there in full or not at all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from vopcore.storage.address import below, display, open_uri
from vopcore.storage.retry import asked, with_retries
from vopcore.storage.whole import scratch_folder, sweep, written_whole

T = TypeVar("T")


class Store:
    """`folder` is a path or an address such as s3://, gs:// or file:// (see address.py).

    Pickles; opens nothing until asked. Requests to an object store that fail for a passing reason are made
    again; those that go on failing raise StorageError.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        self.filesystem, self.root = open_uri(self.folder)
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)

    def __str__(self) -> str:
        return display(self.folder)

    def path(self, name: str) -> str:
        """The path of a file in the folder's file system."""
        return f"{self.root}/{name}"

    def child(self, name: str) -> "Store":
        """The folder `name`, one of our own plain names, in this one."""
        return Store(below(self.folder, name))

    def files(self) -> list[fs.FileInfo]:
        """What is in the folder, sorted by name; nothing where there is no folder yet."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        infos = self.tried(lambda: self.filesystem.get_file_info(selector))
        return sorted(infos, key=lambda info: info.base_name)

    def names(self) -> list[str]:
        """The names of what is in the folder, sorted; none where there is no folder yet."""
        return [info.base_name for info in self.files()]

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        info = self.tried(lambda: self.filesystem.get_file_info(self.path(name)))
        return info.type == fs.FileType.File

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""

        def content() -> bytes:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                return stream.read()

        return self.tried(content)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        with self.writing(name) as path:
            path.write_bytes(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write to; what it holds appears as `name` when the block ends without an error.

        An object store commits even a stream that an error cut short, so it gets whole files only: copied
        to `name.part`, then moved.
        """
        if self.is_local:
            with written_whole(Path(self.path(name))) as path:
                yield path
            return

        # a file that is never written to is an empty one, as on a disk
        with scratch_folder() as folder:
            path = folder / name
            path.touch()
            yield path
            self.upload(path, name)

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file to `name`, which may have folders in it; it appears there whole."""
        self.tried(lambda: self._upload(path, name))

    def download(self, name: str, path: Path) -> None:
        """Copy a file to a local path, whole or not at all. Raises FileNotFoundError."""
        stored = self.path(name)
        disk = fs.LocalFileSystem()
        with written_whole(path) as partial:
            self.tried(lambda: fs.copy_files(stored, str(partial), self.filesystem, disk))

    def _upload(self, path: Path, name: str) -> None:
        partial = self.path(f"{name}.part")
        fs.copy_files(str(path), partial, fs.LocalFileSystem(), self.filesystem)
        self.filesystem.move(partial, self.path(name))

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
        if self.exists(name):
            self.tried(lambda: self.filesystem.delete_file(self.path(name)))

    def sweep(self, beginning: str = "") -> None:
        """Delete what killed writers of files that begin so have left behind on a disk; never what somebody
        still writes.
        """
        if self.is_local:
            sweep(Path(self.root), beginning)

    def free_bytes(self) -> int | None:
        """Room on the disk; None for an object store."""
        if not self.is_local:
            return None

        # the folder may not be there yet, but some parent of it is
        folder = Path(self.root)
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def tried(self, action: Callable[[], T]) -> T:
        """What `action`, a request to this store, returns; tried again where it goes over a network.

        Raises StorageError where a store does not let this machine in, or goes on failing.
        """
        if self.is_local:
            return action()
        return asked(action, str(self))


@contextmanager
def local_copy(filesystem: fs.FileSystem, path: str) -> Iterator[Path]:
    """A file as a local path: itself, or a temporary copy of a remote one, which is read in full anyway.

    Raises StorageError where the store does not answer, and OSError for what is wrong with this one file.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return

    with scratch_folder() as folder:
        # a name may be longer than a disk allows
        copy = folder / f"video{Path(path).suffix}"
        with_retries(
            lambda: fs.copy_files(path, str(copy), filesystem, fs.LocalFileSystem()),
            f"the bucket of {path}",
        )
        yield copy
