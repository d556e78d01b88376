"""Which file holds a video: the videos' folder is listed once, then ids are looked up by file name.

A file is known by its name, by its path below the root and, if its suffix is a video's, by both without
that suffix (only the last one: ids of LSMDC hold dots). Nothing is guessed: all candidates are returned,
and a file whose name is almost the one that was asked for is only mentioned.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from pyarrow import fs

from vopcore.datasets.errors import DatasetError
from vopcore.storage import display, is_uri, open_uri, with_retries

# in the order of preference where one id has several files; `.mp4` before `.webm` as CLIP4Clip does
SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp",
    ".3g2", ".3gpp", ".mts", ".m2ts", ".ts", ".qt", ".asf", ".divx", ".ogv", ".vob",
    ".gif",
)  # fmt: skip


@dataclass(frozen=True)
class VideosFolder:
    """Where the videos are: a folder or the URI of one; whether links in it may lead out of it."""

    place: str
    follow_links: bool = False


class VideoFiles:
    """The files below `root`, a folder on a disk or in an object store (`s3://...`), found by name.

    What it returns are paths in `filesystem`, which go there as they are: a `%` or `#` in a name of an
    object is nothing special. `aliases` gives further names of a file from its name without suffix (DiDeMo:
    the Flickr id in it). `links_left_out` are links that lead out of `root`; a VideosFolder says whether they
    may be followed, a plain path does not allow it. Raises DatasetError if `root` is no folder.
    """

    def __init__(
        self,
        root: str | Path | VideosFolder,
        aliases: Callable[[str], Iterable[str]] = lambda stem: (),
    ) -> None:
        folder = root if isinstance(root, VideosFolder) else VideosFolder(str(root))
        try:
            self.filesystem, self._root = open_uri(folder.place)
        except ValueError as error:
            raise DatasetError(f"the videos' folder {error}") from error

        self.links_left_out: list[str] = []
        self.paths = set(self._list(folder))
        self._aliases = aliases

    # both are made when they are first needed: who asks for paths alone, and finds all, asks for neither
    @cached_property
    def _paths_of_name(self) -> Mapping[str, list[str]]:
        paths: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.paths, key=preference):
            for name in names_of(path, self._aliases):
                paths[name].append(path)
        return paths

    @cached_property
    def _names_of_folded(self) -> Mapping[str, str]:
        return {folded(name): name for name in self._paths_of_name}

    def _list(self, folder: VideosFolder) -> Iterable[str]:
        """Paths of all files, below the root."""
        if is_uri(folder.place) and not isinstance(self.filesystem, fs.LocalFileSystem):
            return list_remote(self.filesystem, self._root, display(folder.place))

        root = Path(self._root)
        if not root.is_dir():
            raise DatasetError(f"the videos' folder {folder.place} does not exist")
        outside = None if folder.follow_links else self.links_left_out
        return list_files(root, outside)

    def find(self, names: Iterable[str]) -> list[str]:
        """Paths of all files that go by one of the names, the best first."""
        matches: dict[str, None] = {}  # a set that keeps its order
        for name in names:
            matches |= dict.fromkeys(self._paths_of_name.get(name, ()))
        return [self._absolute(path) for path in matches]

    def at(self, paths: Iterable[str]) -> list[str]:
        """Paths of those of the paths below the root that are files."""
        matches = []
        for path in paths:
            # most paths are written as they are listed; `a/./b` is not
            normal = path if path in self.paths else PurePosixPath(path).as_posix()
            if normal in self.paths:
                matches.append(self._absolute(normal))
        return matches

    def near(self, names: Iterable[str]) -> str | None:
        """For names that no file goes by: a sentence on a file that almost does, if there is one."""
        for name in names:
            other = self._names_of_folded.get(folded(name))
            if other is not None and other != name:
                return f"there is {other!r}, which differs only in {difference(name, other)}"
        return None

    def _absolute(self, path: str) -> str:
        root = self._root.rstrip("/")
        return f"{root}/{path}"


def names_of(path: str, aliases: Callable[[str], Iterable[str]]) -> set[str]:
    """All names a file goes by, from its path below the root."""
    names = {path, path.rpartition("/")[2]}
    stem, suffix = split_suffix(path)
    if suffix.lower() in SUFFIXES:
        name = stem.rpartition("/")[2]
        names |= {stem, name, *aliases(name)}
    return names


def list_files(root: Path, outside: list[str] | None = None) -> Iterable[str]:
    """Paths below root, with `/`, of all files; links to folders are followed, each folder once.

    outside: takes the links that lead out of root, which are then left out; None: all links are followed.
    """
    real_root = root.resolve()
    visited = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        # links may lead in a circle
        status = Path(folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in visited:
            folders.clear()
            continue
        visited.add(identity)

        # what is taken out of `folders` is not walked into
        if outside is not None:
            outside += _take_out_links(folder, folders, real_root)
            outside += _take_out_links(folder, files, real_root)

        below = Path(folder).relative_to(root).as_posix()
        for name in files:
            yield name if below == "." else f"{below}/{name}"


def _take_out_links(
    folder: str,
    names: list[str],
    real_root: Path,
) -> list[str]:
    """Takes links that lead out of `real_root` out of `names`, which are in `folder`; returns their paths."""
    inside = []
    links = []
    for name in names:
        path = f"{folder}/{name}"
        if _leads_out(path, real_root):
            links.append(path)
        else:
            inside.append(name)
    names[:] = inside
    return links


def _leads_out(path: str, real_root: Path) -> bool:
    """Whether `path` is a link to something that is not below `real_root`."""
    if not os.path.islink(path):  # noqa: PTH114 - a Path for each of a million files takes seconds
        return False
    return not Path(path).resolve().is_relative_to(real_root)


def list_remote(
    filesystem: fs.FileSystem,
    root: str,
    place: str,
) -> Iterable[str]:
    """Paths below the folder `root` of an object store, with `/`, of all files; errors name `place`."""
    selector = fs.FileSelector(root, recursive=True)
    try:
        infos = with_retries(lambda: filesystem.get_file_info(selector), place)
    except (OSError, ValueError) as error:
        raise DatasetError(f"the videos' folder {place} cannot be listed: {error}") from error

    prefix = root.rstrip("/") + "/"
    files = [info for info in infos if info.type == fs.FileType.File]
    return [info.path[len(prefix) :] for info in files]


def folded(name: str) -> str:
    """The same text for names that people take for the same: of any case, slashes and Unicode form."""
    with_slashes = name.replace("\\", "/")
    return unicodedata.normalize("NFC", with_slashes).casefold()


def difference(name: str, other: str) -> str:
    """In what two names differ that fold to the same."""
    if name.replace("\\", "/") == other.replace("\\", "/"):
        return "the slashes"
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other):
        return "how its accents are written (Unicode's NFC and NFD)"
    return "upper and lower case"


def preference(path: str) -> tuple[int, int, str]:
    """Sorts files near the root first, then by the order of SUFFIXES, then by name."""
    depth = path.count("/")
    _, suffix = split_suffix(path)
    suffix = suffix.lower()
    rank = len(SUFFIXES)
    if suffix in SUFFIXES:
        rank = SUFFIXES.index(suffix)
    return depth, rank, path


def split_suffix(path: str) -> tuple[str, str]:
    """("a/b.c", ".mp4") of "a/b.c.mp4"; unlike os.path.splitext, "a.." gives ("a.", ".")."""
    stem, dot, suffix = path.rpartition(".")
    if "/" in suffix:
        return path, ""
    return stem, dot + suffix
