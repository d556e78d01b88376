"""What one ingest task does: decode the videos of one shard and write it. Knows nothing of Ray.

A video may kill or hang its decoder, or want more memory than there is. A watchdog turns a hang into a
death. A task that died leaves an attempt marker; its next attempt decodes each video in a child process
with bounded memory, so that only the guilty one fails. A video with which even that attempt dies is named
in the marker and given up after MAX_DEATHS, so that every shard is finished some day.
"""

import errno
import faulthandler
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from pyarrow import fs

from vopcore.config.sections import Video
from vopcore.shards import Entry, Layout, Moment, default_storage, writing_shard
from vopcore.storage import SourceFacts, StorageError, Store, file_sha256, local_copy, source_facts
from vopcore.video import Decoded, Interpolation, Resize, VideoError, check_ordinary, decode

VideoResult = tuple[Entry, dict[int, np.ndarray]]
"""A video's entry, and of each size its pixels uint8 [F, size, size, 3]; empty for a failed video."""

# Times the time limit: only a decoder that never returns lives to see it.
WATCHDOG = 1.5

# Bytes that a child process may take for one video.
MEMORY_LIMIT = 2 * 2**30

# Of whole tasks, with one video in a child process.
MAX_DEATHS = 2

NO_FACTS = SourceFacts(None, None)


@dataclass(frozen=True)
class ShardFolder:
    """Where frames of one size are stored, and how."""

    folder: str
    layout: Layout


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """What all tasks of an ingest share. Paths of moments are paths in `filesystem`.

    folder, layout: of the frames that a run sees. others: of the other sizes that are stored too.
    """

    folder: str
    layout: Layout
    others: tuple[ShardFolder, ...] = ()
    sampler: str
    stored_frames: int
    time_limit: float
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"
    filesystem: fs.FileSystem = field(default_factory=fs.LocalFileSystem)

    @property
    def folders(self) -> tuple[ShardFolder, ...]:
        """Of every size that is stored."""
        return (ShardFolder(self.folder, self.layout), *self.others)

    def storing(self, sizes: Collection[int]) -> "IngestSettings":
        """The same, of these sizes alone."""
        first, *others = [place for place in self.folders if place.layout.size in sizes]
        return replace(
            self,
            folder=first.folder,
            layout=first.layout,
            others=tuple(others),
        )


def layout_of(video: Video, size: int) -> Layout:
    """How frames of one of the sizes of `video` are stored."""
    storage = video.storage
    if storage == "auto":
        storage = default_storage(video.kept, size)
    return Layout(size, storage, video.quality)


class DiskFullError(ValueError):
    """The shard folder has no room left."""


def decode_shard(
    settings: IngestSettings,
    number: int,
    moments: list[Moment],
    tell: Callable[[int, int], None] = lambda done, failed: None,
) -> list[Entry]:
    """Writes shard `number` of every size and returns its entries, one for every moment, whatever happened
    to it.

    `tell` hears after each how many are done and how many of them failed. Raises DiskFullError, leaving
    nothing half-written behind.
    """
    store = Store(settings.folder)
    attempt = Attempt(store, number)
    try:
        attempt.begin()

        # Results are made while the shard is written: one video's pixels are in memory at a time.
        with attempt.worker(settings) as worker:
            results = (worker.ingest(moment) for moment in moments)
            reported = _reported(results, tell)
            entries = _write_shards(settings, number, reported)

        attempt.end()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no space left in {settings.folder}") from error
        raise
    return entries


def _write_shards(
    settings: IngestSettings,
    number: int,
    results: Iterable[VideoResult],
) -> list[Entry]:
    """Writes shard `number` of every size; of each video the pixels of all are there at once."""
    with ExitStack() as stack:
        shards = {}
        for place in settings.folders:
            writing = writing_shard(Store(place.folder), number, place.layout)
            shards[place.layout.size] = stack.enter_context(writing)

        for entry, pixels in results:
            for size, shard in shards.items():
                shard.add(entry, pixels.get(size))
    return shards[settings.layout.size].entries


def _reported(
    results: Iterable[VideoResult],
    tell: Callable[[int, int], None],
) -> Iterator[VideoResult]:
    """The results as they are; each is told once whoever takes them has it in the shard."""
    num_failed = 0
    for num_done, (entry, pixels) in enumerate(results, 1):
        yield entry, pixels

        if entry.status == "failed":
            num_failed += 1
        tell(num_done, num_failed)


class Attempt:
    """The marker of a shard that is being written, which an attempt that dies leaves behind.

    It holds, as JSON, with which videos whole tasks have died in a child process, and how often.
    """

    def __init__(self, store: Store, number: int) -> None:
        self._store = store
        self._shard = f"{number:06d}."
        self._marker = f"{number:06d}.try"
        self._deaths: dict[str, int] = {}
        self._is_repeated = False

    def begin(self) -> None:
        """Put the marker down, or learn from the one that a dead attempt has left."""
        self._is_repeated = self._store.exists(self._marker)
        if self._is_repeated:
            # An empty marker names nobody yet.
            content = self._store.read(self._marker)
            self._deaths = json.loads(content) if content else {}
            self._store.sweep(self._shard)

        self._write()

    def end(self) -> None:
        """Take the marker away: the shard is whole."""
        self._store.delete(self._marker)

    def worker(self, settings: IngestSettings) -> "ShardWorker":
        """Where this attempt decodes: in this process, or in a child process after a death."""
        if self._is_repeated:
            return ChildWorker(settings, self)

        return LocalWorker(settings)

    def is_hopeless(self, video: str) -> bool:
        """Whether tasks have died with this video too often to try it again."""
        num_deaths = self._deaths.get(video, 0)
        return num_deaths >= MAX_DEATHS

    def start_video(self, video: str) -> None:
        """Names the video before it is decoded: if the task dies now, it was with this one."""
        num_deaths = self._deaths.get(video, 0)
        self._deaths[video] = num_deaths + 1
        self._write()

    def finish_video(self, video: str) -> None:
        """Clears the video; the next `start_video` writes it down."""
        del self._deaths[video]

    def _write(self) -> None:
        content = json.dumps(self._deaths).encode()
        self._store.write(self._marker, content)


def ingest_video(settings: IngestSettings, moment: Moment) -> VideoResult:
    """One video's entry and pixels; a video that cannot be decoded is an entry that says why."""
    facts = NO_FACTS
    try:
        facts = source_facts(settings.filesystem, moment.path)
        decoded, source_sha256 = _decoded_file(settings, moment, facts)
    except StorageError:
        # The machine's trouble: every other video would fail as well.
        raise
    except VideoError as error:
        return failure(moment, facts, str(error))
    except OSError as error:
        # Not the video's fault: without its facts the next run tries it again.
        return failure(moment, NO_FACTS, str(error))
    except Exception as error:
        # A mistake of ours must cost one video, not a run of 20,000.
        return failure(moment, facts, f"{type(error).__name__}: {error}")

    pixels = {size: decoded.pixels_of(size) for size in decoded.squares}
    entry = Entry(
        video=moment.video,
        status=decoded.status,
        error=decoded.error,
        start=moment.start,
        end=moment.end,
        num_frames=len(decoded.times),
        times=decoded.times,
        width=decoded.width,
        height=decoded.height,
        fps=decoded.fps,
        duration=decoded.duration,
        codec=decoded.codec,
        source_size=facts.size,
        source_mtime=facts.mtime,
        source_sha256=source_sha256,
    )
    return entry, pixels


def _decoded_file(
    settings: IngestSettings,
    moment: Moment,
    facts: SourceFacts,
) -> tuple[Decoded, str]:
    """The frames, and the SHA-256 of the file."""
    if moment.path is None:
        raise VideoError("no file was found for this video")
    if facts.size is None:
        _check_there(settings.filesystem, moment.path)
        raise VideoError(f"no such file: {moment.path}")
    if facts.size == 0:
        raise VideoError("the file is empty")

    with local_copy(settings.filesystem, moment.path) as path:
        decoded = decode(
            path,
            count=settings.stored_frames,
            size=[place.layout.size for place in settings.folders],
            sampler=settings.sampler,
            resize=settings.resize,
            interpolation=settings.interpolation,
            start=moment.start,
            end=moment.end,
            time_limit=settings.time_limit,
        )

        # Moments of one file are neighbours in a shard, so a long file is read for this once.
        source_sha256 = _file_hash(path, facts)
        return decoded, source_sha256


def _check_there(filesystem: fs.FileSystem, path: str) -> None:
    """What has no facts may still be there: a pipe, a device, a folder. Raises VideoError, which names it."""
    if isinstance(filesystem, fs.LocalFileSystem) and Path(path).exists():
        check_ordinary(path)


@lru_cache(maxsize=4)
def _file_hash(path: Path, facts: SourceFacts) -> str:
    return file_sha256(path)


def failure(
    moment: Moment,
    facts: SourceFacts,
    reason: str,
) -> VideoResult:
    """The entry of a video without frames."""
    entry = Entry(
        video=moment.video,
        status="failed",
        error=" ".join(reason.split()),
        start=moment.start,
        end=moment.end,
        source_size=facts.size,
        source_mtime=facts.mtime,
    )
    return entry, {}


class ShardWorker(Protocol):
    """Ingests one video after another."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def ingest(self, moment: Moment) -> VideoResult: ...


class LocalWorker:
    """Decodes in this process; a decoder that does not come back ends the process."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def ingest(self, moment: Moment) -> VideoResult:
        seconds = WATCHDOG * self._settings.time_limit

        # The traceback is nobody's: what matters is that the process ends.
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - faulthandler wants a descriptor
            faulthandler.dump_traceback_later(
                seconds,
                exit=True,
                file=nowhere,
            )
            try:
                return ingest_video(self._settings, moment)
            finally:
                faulthandler.cancel_dump_traceback_later()


class ChildWorker:
    """Decodes in a child process of bounded memory, which is replaced when a video has killed it."""

    def __init__(self, settings: IngestSettings, attempt: Attempt) -> None:
        self._settings = settings
        self._attempt = attempt
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process:
            self._pipe.close()
            self._process.join()

    def ingest(self, moment: Moment) -> VideoResult:
        if self._attempt.is_hopeless(moment.video):
            # Without its facts: the next run, on a machine with more room, tries it again.
            reason = f"decoding it ended the whole task {MAX_DEATHS} times, perhaps for want of memory"
            return failure(moment, NO_FACTS, reason)

        self._attempt.start_video(moment.video)
        result = self._ask_child(moment)

        # Still alive: it was not this one.
        self._attempt.finish_video(moment.video)
        return result

    def _ask_child(self, moment: Moment) -> VideoResult:
        if self._process is None:
            self._process = self._start()

        try:
            self._pipe.send(moment)
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            # The pipe breaks when the child dies; the next video gets a new one.
            self._process.join()
            reason = self._cause_of_death(self._process.exitcode)
            self._process = None
            facts = source_facts(self._settings.filesystem, moment.path)
            return failure(moment, facts, reason)

        # The machine's trouble travels as an answer: in the child it would end nothing but the child.
        if isinstance(answer, StorageError):
            raise answer
        return answer

    def _start(self) -> multiprocessing.process.BaseProcess:
        # A plain fork would copy the threads' locks of this process, some of them held.
        context = multiprocessing.get_context("forkserver")
        self._pipe, child_end = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(child_end, self._settings),
            daemon=True,
        )
        process.start()

        # The child must be the only one to hold its end: then its death closes the pipe.
        child_end.close()
        return process

    def _cause_of_death(self, exit_code: int | None) -> str:
        if exit_code == -signal.SIGKILL:
            return "the decoder was killed, most likely for want of memory (signal 9)"
        if exit_code is not None and exit_code < 0:
            return f"the decoder crashed (signal {-exit_code})"

        # The watchdog ends its process with a plain exit code.
        seconds = WATCHDOG * self._settings.time_limit
        return f"the decoder hung and was ended after {seconds:g} s"


def _serve(pipe: Connection, settings: IngestSettings) -> None:
    """The child's life: one answer for each moment, until nobody asks any more."""
    _limit_memory()
    with LocalWorker(settings) as worker:
        while True:
            try:
                moment = pipe.recv()
            except EOFError:
                return

            try:
                result = worker.ingest(moment)
                pipe.send(result)
            except StorageError as error:
                pipe.send(error)


def _limit_memory() -> None:
    """Lets this process take MEMORY_LIMIT more than it has now. On Linux; elsewhere the system decides."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return

    # The first number is the size of the address space, in pages.
    num_pages = int(statm.read_text().split()[0])
    num_bytes = num_pages * os.sysconf("SC_PAGE_SIZE")
    limit = num_bytes + MEMORY_LIMIT

    # A process may not ask for more than the hard limit.
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    if hard_limit != resource.RLIM_INFINITY:
        limit = min(limit, hard_limit)

    resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))
