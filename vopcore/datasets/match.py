"""Which file holds a video: the videos' folder is listed once, then ids are looked up by file name.

A file is known by its name, by its path below the root and, if its suffix is a video's, by both without
that suffix (only the last one: ids of LSMDC hold dots). Nothing is guessed: all candidates are returned.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from pyarrow import fs

from vopcore.datasets.errors import DatasetError

# in the order of preference where one id has several files; `.mp4` before `.webm` as CLIP4Clip does
SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp",
    ".3g2", ".3gpp", ".mts", ".m2ts", ".ts", ".qt", ".asf", ".divx", ".ogv", ".vob",
)  # fmt: skip


class VideoFiles:
    """The files below `root`, a folder or the URI of one in an object store, found by name.

    `aliases` gives further names of a file from its name without suffix (DiDeMo: the Flickr id in it).
    Raises DatasetError if `root` is no folder.
    """

    def __init__(self, root: str | Path, aliases: Callable[[str], Iterable[str]] = lambda stem: ()) -> None:
        if "://" in str(root):
            self._root, self._query = str(root).partition("?")[::2]
            self.paths = set(list_remote(str(root)))
        else:
            if not Path(root).is_dir():
                raise DatasetError(f"the videos' folder {root} does not exist")
            self._root, self._query = str(Path(root).absolute()), ""
            self.paths = set(list_files(Path(self._root)))
        self._named: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.paths, key=preference):
            keys = {path, path.rpartition("/")[2]}
            stem, suffix = split_suffix(path)
            if suffix.lower() in SUFFIXES:
                name = stem.rpartition("/")[2]
                keys |= {stem, name, *aliases(name)}
            for key in keys:
                self._named[key].append(path)

    def find(self, names: Iterable[str]) -> list[str]:
        """Absolute paths or URIs of all files that go by one of the names, the best first."""
        found = {path: None for name in names for path in self._named.get(name, ())}
        return [self._absolute(path) for path in found]

    def at(self, paths: Iterable[str]) -> list[str]:
        """Absolute paths or URIs of those of the paths below the root that are files."""
        there = (PurePosixPath(path).as_posix() for path in paths)
        return [self._absolute(path) for path in there if path in self.paths]

    def _absolute(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}" + (f"?{self._query}" if self._query else "")


def list_files(root: Path) -> Iterable[str]:
    """Paths below root, with `/`, of all files; links to folders are followed, each folder once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder).stat()
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        below = Path(folder).relative_to(root).as_posix()
        yield from (name if below == "." else f"{below}/{name}" for name in files)


def list_remote(uri: str) -> Iterable[str]:
    """Paths below the folder `uri` (s3://, gs://, ...), with `/`, of all files."""
    try:
        filesystem, root = fs.FileSystem.from_uri(uri)
        found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except (OSError, ValueError) as error:
        raise DatasetError(f"the videos' folder {uri} cannot be listed: {error}") from error
    below = len(root.rstrip("/")) + 1
    return [info.path[below:] for info in found if info.type == fs.FileType.File]


def preference(path: str) -> tuple[int, int, str]:
    """Sorts files near the root first, then by the order of SUFFIXES, then by name."""
    suffix = split_suffix(path)[1].lower()
    return path.count("/"), SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES), path


def split_suffix(path: str) -> tuple[str, str]:
    """("a/b.c", ".mp4") of "a/b.c.mp4"; unlike os.path.splitext, "a.." gives ("a.", ".")."""
    stem, dot, suffix = path.rpartition(".")
    return (stem, dot + suffix) if "/" not in suffix else (path, "")
