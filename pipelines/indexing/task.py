"""The windows of one video, decoded in a child process: a video that kills or hangs its decoder costs itself.

Knows nothing of Ray. The child lives on from video to video and is replaced when one has ended it.
"""

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import numpy as np

from vopcore.index import Span, WindowRule
from vopcore.index.encode import WindowFrames
from vopcore.storage import local_copy, open_uri
from vopcore.video import Decoded, Interpolation, Resize, VideoError, decode, decode_moments

PIECE = 32  # windows that are sent on at once: 30 MB at 224 pixels, 12 frames, half overlapping
STRETCH = 8 * PIECE  # windows decoded in one pass; each pass reads all packets anew, and holds its frames
GRACE = 10.0  # seconds over the time limit after which a silent child is ended


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """What all videos of an index share. `root`: their folder or URI; `time_limit`: seconds for each pass
    over a video."""

    root: str
    rule: WindowRule
    frames: int
    size: int
    sampler: str
    time_limit: float
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True)
class Ending:
    """The last that is heard of a video. `status` is "ok", "damaged" or "failed"; `duration` in seconds."""

    status: str
    error: str | None
    duration: float


def decode_windows(
    settings: DecodeSettings,
    video: str,
) -> Iterator[WindowFrames | Ending]:
    """The windows of one video, a path below the root, a few at a time, and how it ended; never raises."""
    duration = 0.0
    problems: list[str] = []
    try:
        filesystem, root = open_uri(settings.root)
        with local_copy(filesystem, f"{root.rstrip('/')}/{video}") as file:
            duration = _duration(settings, file)
            windows = settings.rule.windows(duration)
            for first in range(0, len(windows), STRETCH):
                spans = windows[first : first + STRETCH]
                yield from _decode_stretch(settings, file, spans, problems)
    except Exception as error:  # a mistake in a decoder must cost one video, not all of them
        known = isinstance(error, VideoError | OSError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        yield Ending("failed", " ".join(reason.split()), duration)
        return
    yield Ending(
        "damaged" if problems else "ok",
        problems[0] if problems else None,
        duration,
    )


def _duration(settings: DecodeSettings, file: Path) -> float:
    """Seconds of a video, from its packets: headers lie."""
    first = decode(
        file,
        count=1,
        size=settings.size,
        sampler="head",
        time_limit=settings.time_limit,
    )
    return first.duration


def _decode_stretch(
    settings: DecodeSettings,
    file: Path,
    spans: list[Span],
    problems: list[str],
) -> Iterator[WindowFrames]:
    """Windows that are decoded in one pass; adds to `problems` what was damaged."""
    decoded = decode_moments(
        file,
        spans,
        count=settings.frames,
        size=settings.size,
        sampler=settings.sampler,
        time_limit=settings.time_limit,
        resize=settings.resize,
        interpolation=settings.interpolation,
        thumbnails=True,
    )
    problems += [moment.error or moment.status for moment in decoded if moment.status != "ok"]
    for first in range(0, len(spans), PIECE):
        yield share_frames(spans[first : first + PIECE], decoded[first : first + PIECE])


def share_frames(spans: list[Span], decoded: list[Decoded]) -> WindowFrames:
    """The windows with each frame once: overlapping windows see the same ones."""
    rows_by_time: dict[float, int] = {}
    pixels: list[np.ndarray] = []
    thumbnails = []
    frames = []
    for moment in decoded:
        (squares,) = moment.squares.values()
        chosen = []
        for time, square, thumbnail in zip(moment.times, squares, moment.thumbnails, strict=True):
            if time not in rows_by_time:
                rows_by_time[time] = len(pixels)
                pixels.append(square)
                thumbnails.append(thumbnail)
            chosen.append(rows_by_time[time])
        frames.append(chosen)
    return WindowFrames(
        spans=spans,
        pixels=np.stack(pixels),
        thumbnails=thumbnails,
        times=np.array(list(rows_by_time), np.float64),
        frames=frames,
    )


class DecodingChild:
    """A child process that decodes one video after the other."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def decode(self, video: str) -> Iterator[WindowFrames | Ending]:
        """As `decode_windows`; a video that ends the child, or keeps it silent, is one that failed."""
        process = self._process or self._start()
        try:
            self._pipe.send(video)
            while True:
                if not self._pipe.poll(self._settings.time_limit + GRACE):
                    process.kill()
                    self._end()
                    reason = f"the decoder hung and was ended after {self._settings.time_limit + GRACE:g} s"
                    yield Ending("failed", reason, 0.0)
                    return
                piece = self._pipe.recv()
                yield piece
                if isinstance(piece, Ending):
                    return
        except (EOFError, ConnectionError):
            process.join()
            code = process.exitcode
            self._end()
            yield Ending("failed", f"the decoder crashed (exit code {code})", 0.0)

    def _start(self) -> multiprocessing.process.BaseProcess:
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(theirs, self._settings),
            daemon=True,
        )
        self._process = process
        process.start()
        theirs.close()
        return process

    def _end(self) -> None:
        """The child ends when nobody asks any more."""
        if self._process is not None:
            self._pipe.close()
            self._process.join()
            self._process = None


def _serve(pipe: Connection, settings: DecodeSettings) -> None:
    """The child's life: the pieces of each video it is asked for, until nobody asks any more."""
    while True:
        try:
            video = pipe.recv()
            for piece in decode_windows(settings, video):
                pipe.send(piece)
        except (EOFError, ConnectionError):
            return
