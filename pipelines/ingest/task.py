"""What one ingest task does: decode the videos of one shard and write it. Knows nothing of Ray.

A video may kill or hang its decoder. A watchdog turns a hang into a death; a task that died leaves an
attempt marker, and its next attempt decodes each video in a child process, so that only the guilty one
fails.
"""

import errno
import faulthandler
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Self

import numpy as np
from pyarrow import fs

from vopcore.shards import Entry, Layout, Moment, write_shard
from vopcore.storage import SourceFacts, Store, local_copy, source_facts
from vopcore.video import VideoError, decode

Video = tuple[Entry, np.ndarray | None]


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """What all tasks of an ingest share. Paths of moments are paths in `filesystem`."""

    folder: str
    layout: Layout
    sampler: str
    stored_frames: int
    time_limit: float
    filesystem: fs.FileSystem = field(default_factory=fs.LocalFileSystem)


class DiskFullError(ValueError):
    """The shard folder has no room left."""


def decode_shard(
    settings: IngestSettings,
    number: int,
    moments: list[Moment],
    tell: Callable[[int, int], None] = lambda done, failed: None,
) -> list[Entry]:
    """Writes shard `number` and returns its entries; every moment is one of them, whatever happened to it.
    `tell` hears after each how many are done and how many of them failed.

    Raises DiskFullError, leaving nothing half-written behind.
    """
    store = Store(settings.folder)
    marker = f"{number:06d}.try"
    try:
        died_before = store.exists(marker)
        store.write(marker, b"")
        if died_before:
            store.sweep(f"{number:06d}.")
        with Child(settings) if died_before else Here(settings) as decoder:
            entries = write_shard(store, number, settings.layout, _told(map(decoder.decode, moments), tell))
        store.delete(marker)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no space left in {settings.folder}") from error
        raise
    return entries


def _told(videos: Iterable[Video], tell: Callable[[int, int], None]) -> Iterator[Video]:
    failed = 0
    for done, (entry, pixels) in enumerate(videos, 1):
        yield entry, pixels
        failed += entry.status == "failed"
        tell(done, failed)


def decode_moment(settings: IngestSettings, moment: Moment) -> Video:
    """One video's entry and pixels; a video that cannot be decoded is an entry that says why."""
    facts = SourceFacts(None, None)
    try:
        facts = source_facts(settings.filesystem, moment.path)
        pixels, known = _decoded(settings, moment, facts)
    except Exception as error:  # a bug in a decoder must cost one video, not a run of 20,000
        if isinstance(error, OSError):  # not the video's fault: without its facts the next run tries it again
            facts = SourceFacts(None, None)
        reason = str(error) if isinstance(error, VideoError | OSError) else f"{type(error).__name__}: {error}"
        pixels, known = None, {"status": "failed", "error": " ".join(reason.split())}
    entry = Entry(
        video=moment.video,
        start=moment.start,
        end=moment.end,
        source_size=facts.size,
        source_mtime=facts.mtime,
        **known,
    )
    return entry, pixels


def _decoded(settings: IngestSettings, moment: Moment, facts: SourceFacts) -> tuple[np.ndarray, dict]:
    if moment.path is None:
        raise VideoError("no file was found for this video")
    if facts.size is None:
        raise VideoError(f"no such file: {moment.path}")
    if facts.size == 0:
        raise VideoError("the file is empty")
    with local_copy(settings.filesystem, moment.path) as path:
        decoded = decode(
            path,
            count=settings.stored_frames,
            size=settings.layout.size,
            sampler=settings.sampler,
            start=moment.start,
            end=moment.end,
            time_limit=settings.time_limit,
        )
    pixels = decoded.pixels
    known = {
        "status": decoded.status,
        "error": decoded.error,
        "num_frames": len(pixels),
        "times": decoded.times,
        "width": decoded.width,
        "height": decoded.height,
        "fps": decoded.fps,
        "duration": decoded.duration,
        "codec": decoded.codec,
    }
    return pixels, known


class Here:
    """Decodes in this process; a decoder that does not come back ends the process."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def decode(self, moment: Moment) -> Video:
        # A slow video ends itself at the time limit; only one that never leaves FFmpeg lives to see this.
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - faulthandler wants a descriptor
            faulthandler.dump_traceback_later(1.5 * self._settings.time_limit, exit=True, file=nowhere)
            try:
                return decode_moment(self._settings, moment)
            finally:
                faulthandler.cancel_dump_traceback_later()


class Child:
    """Decodes in a child process, which is replaced when a video has killed it."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._process: multiprocessing.Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process:
            self._pipe.close()
            self._process.join()

    def decode(self, moment: Moment) -> Video:
        if self._process is None:
            self._start()
        try:
            self._pipe.send(moment)
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            reason = self._cause_of_death(self._process.exitcode)
            self._process = None
            facts = source_facts(self._settings.filesystem, moment.path)
            entry = Entry(
                video=moment.video,
                status="failed",
                error=reason,
                start=moment.start,
                end=moment.end,
                source_size=facts.size,
                source_mtime=facts.mtime,
            )
            return entry, None

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._settings), daemon=True)
        self._process.start()
        theirs.close()

    def _cause_of_death(self, exit_code: int | None) -> str:
        if exit_code is not None and exit_code < 0:
            return f"the decoder crashed (signal {-exit_code})"
        return f"the decoder hung and was ended after {1.5 * self._settings.time_limit:g} s"


def _serve(pipe: Connection, settings: IngestSettings) -> None:
    """The child's life: one answer for each moment, until nobody asks any more."""
    with Here(settings) as decoder:
        while True:
            try:
                moment = pipe.recv()
            except EOFError:
                return
            pipe.send(decoder.decode(moment))
