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
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Self

import numpy as np

from vopcore.shards import Clip, Entry, Layout, write_shard
from vopcore.storage import SourceFacts, Store, local_copy, source_facts
from vopcore.video import VideoError, decode

Video = tuple[Entry, np.ndarray | None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all tasks of an ingest share."""

    folder: str
    layout: Layout
    sampler: str
    stored_frames: int
    time_limit: float


class DiskFullError(ValueError):
    """The shard folder has no room left."""


def decode_shard(
    job: Job, number: int, clips: list[Clip], tell: Callable[[int, int], None] = lambda done, failed: None
) -> list[Entry]:
    """Writes shard `number` and returns its entries; every clip is one of them, whatever happened to it.
    `tell` hears after each how many are done and how many of them failed.

    Raises DiskFullError, leaving nothing half-written behind.
    """
    store = Store(job.folder)
    marker = f"{number:06d}.try"
    try:
        died_before = store.exists(marker)
        store.write(marker, b"")
        if died_before:
            store.sweep(f"{number:06d}.")
        with Child(job) if died_before else Here(job) as decoder:
            entries = write_shard(store, number, job.layout, _told(map(decoder.decode, clips), tell))
        store.delete(marker)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no space left in {job.folder}") from error
        raise
    return entries


def _told(videos: Iterable[Video], tell: Callable[[int, int], None]) -> Iterator[Video]:
    failed = 0
    for done, (entry, pixels) in enumerate(videos, 1):
        yield entry, pixels
        failed += entry.status == "failed"
        tell(done, failed)


def decode_clip(job: Job, clip: Clip) -> Video:
    """One video's entry and pixels; a video that cannot be decoded is an entry that says why."""
    facts = SourceFacts(None, None)
    try:
        facts = source_facts(clip.path)
        pixels, known = _decoded(job, clip, facts)
    except Exception as error:  # a bug in a decoder must cost one video, not a run of 20,000
        if isinstance(error, OSError):  # not the video's fault: without its facts the next run tries it again
            facts = SourceFacts(None, None)
        reason = str(error) if isinstance(error, VideoError | OSError) else f"{type(error).__name__}: {error}"
        pixels, known = None, {"status": "failed", "error": " ".join(reason.split())}
    entry = Entry(
        video=clip.video,
        start=clip.start,
        end=clip.end,
        source_size=facts.size,
        source_mtime=facts.mtime,
        **known,
    )
    return entry, pixels


def _decoded(job: Job, clip: Clip, facts: SourceFacts) -> tuple[np.ndarray, dict]:
    if clip.path is None:
        raise VideoError("no file was found for this video")
    if facts.size is None:
        raise VideoError(f"no such file: {clip.path}")
    if facts.size == 0:
        raise VideoError("the file is empty")
    with local_copy(clip.path) as path:
        decoded = decode(
            path,
            count=job.stored_frames,
            size=job.layout.size,
            sampler=job.sampler,
            start=clip.start,
            end=clip.end,
            time_limit=job.time_limit,
        )
    known = asdict(decoded)
    pixels = known.pop("pixels")
    return pixels, {**known, "num_frames": len(pixels)}


class Here:
    """Decodes in this process; a decoder that does not come back ends the process."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def decode(self, clip: Clip) -> Video:
        # A slow video ends itself at the time limit; only one that never leaves FFmpeg lives to see this.
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - faulthandler wants a descriptor
            faulthandler.dump_traceback_later(1.5 * self._job.time_limit, exit=True, file=nowhere)
            try:
                return decode_clip(self._job, clip)
            finally:
                faulthandler.cancel_dump_traceback_later()


class Child:
    """Decodes in a child process, which is replaced when a video has killed it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: multiprocessing.Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process:
            self._pipe.close()
            self._process.join()

    def decode(self, clip: Clip) -> Video:
        if self._process is None:
            self._start()
        try:
            self._pipe.send(clip)
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            reason = self._cause_of_death(self._process.exitcode)
            self._process = None
            facts = source_facts(clip.path)
            entry = Entry(
                video=clip.video,
                status="failed",
                error=reason,
                start=clip.start,
                end=clip.end,
                source_size=facts.size,
                source_mtime=facts.mtime,
            )
            return entry, None

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._job), daemon=True)
        self._process.start()
        theirs.close()

    def _cause_of_death(self, exit_code: int | None) -> str:
        if exit_code is not None and exit_code < 0:
            return f"the decoder crashed (signal {-exit_code})"
        return f"the decoder hung and was ended after {1.5 * self._job.time_limit:g} s"


def _serve(pipe: Connection, job: Job) -> None:
    """The child's life: one answer for each clip, until nobody asks any more."""
    with Here(job) as decoder:
        while True:
            try:
                clip = pipe.recv()
            except EOFError:
                return
            pipe.send(decoder.decode(clip))
