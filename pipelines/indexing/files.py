"""Which videos lie in a folder or a bucket, and which files of it may be opened at all."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs

from vopcore.datasets.match import SUFFIXES
from vopcore.storage import is_uri, open_uri

if TYPE_CHECKING:
    from vopcore.index import IndexedVideo


class FolderError(ValueError):
    """A folder that cannot be indexed; one line."""


@dataclass(frozen=True)
class VideoFile:
    """A file that may be a video. `video`: its path below the root, with `/`; size in bytes, mtime in seconds
    since 1970."""

    video: str
    size: int
    mtime: float


@dataclass(frozen=True)
class Listing:
    """The videos below a root, and the files with a video's suffix that are never opened, with the reason."""

    files: list[VideoFile]
    refused: list["IndexedVideo"]


def list_videos(root: str) -> Listing:
    """Every file below `root` (a folder or URI) with a suffix of videos, sorted.

    Raises FolderError where `root` is no folder, cannot be read, or holds no such file.
    """
    listing = _list_remote(root) if is_uri(root) else _list_local(Path(root))
    if not listing.files and not listing.refused:
        raise FolderError(
            f"{root}: no video in this folder; a video's name ends in {' '.join(SUFFIXES[:5])} ..."
        )
    return listing


def _list_local(root: Path) -> Listing:
    if not root.is_dir():
        raise FolderError(f"{root}: no such folder")
    if not os.access(root, os.R_OK | os.X_OK):
        raise FolderError(f"{root}: this folder may not be read")

    files = []
    refused = []
    # Links to folders are not followed: they lead out of the root, or to what is listed anyway.
    for folder, _, names in os.walk(root):
        for name in names:
            if Path(name).suffix.lower() not in SUFFIXES:
                continue
            path = Path(folder) / name
            video = path.relative_to(root).as_posix()
            try:
                video.encode()
                facts = _facts(root, path)
            except UnicodeEncodeError:
                shown = os.fsencode(video).decode(errors="backslashreplace")
                refused.append(_refused(shown, "its name is not UTF-8; rename it"))
            except FolderError as error:
                refused.append(_refused(video, str(error)))
            except OSError as error:
                refused.append(_refused(video, error.strerror or type(error).__name__))
            else:
                files.append(VideoFile(video, facts.st_size, facts.st_mtime))
    files.sort(key=lambda file: file.video)
    return Listing(files, refused)


def _facts(root: Path, path: Path) -> os.stat_result:
    if path.is_symlink() and not is_inside(root, path):
        raise FolderError("a link to a file outside the folder is not followed")
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise FolderError("not a file but a pipe, socket or device")
    return facts


def _refused(video: str, reason: str) -> "IndexedVideo":
    # only here: a folder that does not exist is refused without torch
    from vopcore.index import IndexedVideo

    return IndexedVideo(
        video=video,
        size=0,
        mtime=0.0,
        status="failed",
        error=reason,
    )


def _list_remote(root: str) -> Listing:
    try:
        filesystem, path = open_uri(root)
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FolderError(f"{root}: cannot be listed: {reason}") from None

    files = []
    first = len(path.rstrip("/")) + 1
    for info in infos:
        if info.type == fs.FileType.File and Path(info.path).suffix.lower() in SUFFIXES:
            files.append(VideoFile(info.path[first:], info.size, info.mtime_ns / 1e9))
    files.sort(key=lambda file: file.video)
    return Listing(files, [])


def is_inside(root: Path, path: Path) -> bool:
    """Whether a path, with all links followed, lies below the root, with all links followed."""
    return path.resolve().is_relative_to(root.resolve())
