"""A folder on a disk or in an object store, where a file is either there in full or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pyarrow import fs


class SourceFacts(NamedTuple):
    """Size in bytes and time of change (seconds since 1970) of a video file; both None where there is
    no file.
    """

    size: int | None
    mtime: float | None


class Store:
    """`folder` is a path or a URI that pyarrow knows (s3://, gs://, file://). Pickles; opens nothing
    until asked.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        self.filesystem, self.root = open_uri(self.folder)
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def names(self) -> list[str]:
        """The folder's files, sorted; none where there is no folder yet."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def exists(self, name: str) -> bool:
        return self.filesystem.get_file_info(self.path(name)).type == fs.FileType.File

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write(self, name: str, data: bytes) -> None:
        with self.writing(name) as path:
            path.write_bytes(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write to; what it holds appears as `name` when the block ends without an error.

        An object store commits even a stream that an error cut short, so it gets whole files only: copied
        to `name.part`, then moved.
        """
        if self.is_local:
            self.filesystem.create_dir(self.root)
        folder = self.root if self.is_local else None
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=folder)
        os.close(handle)
        try:
            yield Path(temporary)
            if self.is_local:
                _publish(Path(temporary), Path(self.path(name)))
            else:
                part = self.path(f"{name}.part")
                fs.copy_files(temporary, part, fs.LocalFileSystem(), self.filesystem)
                self.filesystem.move(part, self.path(name))
        finally:
            Path(temporary).unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        if self.exists(name):
            self.filesystem.delete_file(self.path(name))

    def sweep(self, beginning: str) -> None:
        """Deletes what killed writers of the files that begin so have left behind on this disk."""
        for name in self.names() if self.is_local else ():
            if name.startswith(f".{beginning}") and name.endswith(".part"):
                self.delete(name)

    def free_bytes(self) -> int | None:
        """Room on the disk; None for an object store."""
        if not self.is_local:
            return None
        there = Path(self.root)
        while not there.exists():
            there = there.parent
        return shutil.disk_usage(there).free


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it. Raises ValueError naming the URI if there
    is none.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(uri)  # noqa: PTH100 - Path.absolute() keeps the dots
    try:
        return fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise ValueError(f"{uri}: {error}") from error


def below(place: str, name: str) -> str:
    """The path or URI of `name` in the folder `place`; a URI's options stay behind the question mark."""
    path, mark, options = place.partition("?") if "://" in place else (place, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def _publish(temporary: Path, path: Path) -> None:
    """Makes the bytes durable before the name, so that a power cut leaves no empty file under it."""
    temporary.chmod(0o644)  # mkstemp makes it private
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def source_facts(path: str | None) -> SourceFacts:
    """Size and time of change of a file, local or remote; both None if there is none."""
    if path is None:
        return SourceFacts(None, None)
    filesystem, name = open_uri(path)
    info = filesystem.get_file_info(name)
    if info.type != fs.FileType.File:
        return SourceFacts(None, None)
    return SourceFacts(info.size, info.mtime_ns / 1e9)


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A file as a local path: itself, or a temporary copy of a remote one, which is read in full anyway."""
    filesystem, name = open_uri(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(name)
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / Path(name).name
        fs.copy_files(name, str(copy), filesystem, fs.LocalFileSystem())
        yield copy
