"""What identifies a video file: its size and time of change, asked for a million files as for one, and its
content.
"""

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from vopcore.storage.hashing import file_sha256
from vopcore.storage.retry import asked
from vopcore.storage.store import local_copy

THREADS = 32  # a network disk answers after a millisecond, whatever else it is asked
CHUNK = 2048  # files of one thread at a time
FACTS = pa.schema([("size", pa.int64()), ("mtime", pa.float64())])


class SourceFacts(NamedTuple):
    """Size in bytes and time of change (seconds since 1970) of a video file; both None where there is
    no file.
    """

    size: int | None
    mtime: float | None


NO_FILE = SourceFacts(None, None)


def source_facts(filesystem: fs.FileSystem, path: str | None) -> SourceFacts:
    """Size and time of change of one file; both None if there is none."""
    if path is None:
        return NO_FILE
    if isinstance(filesystem, fs.LocalFileSystem):
        return _local_facts(path)
    info = asked(lambda: filesystem.get_file_info(path), f"the bucket of {path}")
    return _facts_of(info)


def all_source_facts(
    filesystem: fs.FileSystem,
    paths: Sequence[str | None],
) -> pa.Table:
    """FACTS of many files, in their order: of a disk in threads, of an object store from its listing."""
    if not paths:
        return FACTS.empty_table()

    if isinstance(filesystem, fs.LocalFileSystem):
        starts = range(0, len(paths), CHUNK)
        chunks = [paths[start : start + CHUNK] for start in starts]
        with ThreadPoolExecutor(THREADS) as pool:
            tables = list(pool.map(_local_facts_of, chunks))
        return pa.concat_tables(tables)

    known_paths = [path for path in paths if path is not None]
    listed = _listing(filesystem, known_paths)
    facts = []
    for path in paths:
        fact = listed.get(path, NO_FILE) if path else NO_FILE
        facts.append(fact)
    return _table(facts)


def source_sha256(filesystem: fs.FileSystem, path: str) -> str:
    """SHA-256 of a video file's bytes, local or remote."""
    with local_copy(filesystem, path) as copy:
        return file_sha256(copy)


def _listing(filesystem: fs.FileSystem, paths: Sequence[str]) -> dict[str, SourceFacts]:
    """One listing of each folder: an object store gives a thousand names for a request."""
    # a dict is a set that keeps its order
    folders = dict.fromkeys(path.rpartition("/")[0] for path in paths)
    listed: dict[str, SourceFacts] = {}
    for folder in folders:
        selector = fs.FileSelector(folder, allow_not_found=True)
        list_folder = partial(filesystem.get_file_info, selector)
        infos = asked(list_folder, f"the bucket of {folder}")
        for info in infos:
            listed[info.path] = _facts_of(info)
    return listed


def _local_facts_of(paths: Sequence[str | None]) -> pa.Table:
    return _table([NO_FILE if path is None else _local_facts(path) for path in paths])


def _local_facts(path: str) -> SourceFacts:
    try:
        status = os.stat(path)  # noqa: PTH116 - Path.stat() costs twice the time
    except (FileNotFoundError, NotADirectoryError):
        return NO_FILE
    if not stat.S_ISREG(status.st_mode):
        return NO_FILE
    return SourceFacts(status.st_size, status.st_mtime_ns / 1e9)


def _facts_of(info: fs.FileInfo) -> SourceFacts:
    if info.type != fs.FileType.File:
        return NO_FILE
    return SourceFacts(info.size, info.mtime_ns / 1e9)


def _table(facts: Sequence[SourceFacts]) -> pa.Table:
    sizes = [fact.size for fact in facts]
    mtimes = [fact.mtime for fact in facts]
    columns = [pa.array(sizes, pa.int64()), pa.array(mtimes, pa.float64())]
    return pa.table(columns, schema=FACTS)
