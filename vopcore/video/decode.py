"""Frames of a video, exactly the ones asked for, for the least decoding.

Two ways give the same pictures. Where packets carry times, the wanted frames are planned on packets and
only what they need is decoded, without pictures that nothing refers to. Elsewhere (raw streams, AVI with
B-frames, broken files) everything is decoded and frames are counted. No seeking: it gives wrong frames in
open groups, AVI and fragmented files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vopcore.video.plan import Run, runs, span
from vopcore.video.preprocess import preprocess
from vopcore.video.sample import SAMPLERS
from vopcore.video.source import MAX_PIXELS, Source, VideoError, reason

DECODER_VERSION = 1  # rises when the same file would give other pixels

# Decoders that read `skip_frame` before each packet; the others read it once or not at all.
SKIPPING_DECODERS = {"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "vp8"}

Pick = Callable[[np.ndarray], list[int]]  # times of all frames -> ordinals of the wanted ones


@dataclass(frozen=True)
class Decoded:
    """Sampled frames of one video. `pixels` uint8 [F, size, size, 3] RGB; `times` seconds of each after
    the first frame.

    `status` is "ok" or "damaged" (`error` says how); `width`, `height` of the stored pictures, before
    rotation.
    """

    pixels: np.ndarray
    times: list[float]
    status: str
    error: str | None
    width: int
    height: int
    fps: float
    duration: float
    codec: str


def decode(
    file: str | Path | BinaryIO,
    *,
    count: int,
    size: int = 224,
    sampler: str = "uniform",
    start: float | None = None,
    end: float | None = None,
    time_limit: float | None = None,
) -> Decoded:
    """At most `count` frames of the clip [start, end) seconds, chosen by a sampler of SAMPLERS; fewer
    where it has fewer.

    Raises VideoError, with the reason in one line, when no frame can be decoded or `time_limit` seconds
    have passed; a decoder that hangs inside one packet must be ended from outside.
    """
    if start is not None and end is not None and end <= start:
        raise VideoError(f"the clip ends at {end:g} s, before it starts at {start:g} s")
    with Source(file, time_limit) as source:
        source.scan()
        fps = float(source.stream.guessed_rate or source.stream.average_rate or 25)

        def pick(times: np.ndarray) -> list[int]:
            try:
                first, stop = span(times, start, end)
            except ValueError as error:
                raise VideoError(str(error)) from error
            return [first + i for i in SAMPLERS[sampler](stop - first, fps, count)]

        shots = _Shots(source, size, fps)
        if not (_can_plan(source) and shots.planned(pick)):
            shots.counted(pick)
        return Decoded(
            pixels=np.stack(shots.pixels),
            times=[round(float(time), 6) for time in shots.times],
            status="damaged" if source.problems else "ok",
            error=_summary(source.problems),
            width=source.decoder.width,
            height=source.decoder.height,
            fps=fps,
            duration=round(shots.duration, 6),
            codec=source.decoder.codec.canonical_name,
        )


def _can_plan(source: Source) -> bool:
    """Whether the packets' times are the pictures' times: AVI repeats decoding times where pictures are
    reordered.
    """
    in_decoding_order = source.stream.container.format.name == "avi" and source.decoder.has_b_frames
    return source.packets.are_timed() and not in_decoding_order


class _Shots:
    """The wanted frames of one source, filled by `planned` or `counted`."""

    def __init__(self, source: Source, size: int, fps: float) -> None:
        self._source, self._size, self._fps = source, size, fps
        self._reformatter = VideoReformatter()
        self.pixels: list[np.ndarray] = []
        self.times: list[float] = []
        self.duration = 0.0

    def planned(self, pick: Pick) -> bool:
        """Decodes what the picked packets need; False if one of them gave no picture."""
        packets = self._source.packets
        order = packets.shown_in_order()
        pts = np.asarray(packets.pts)[order]
        if not len(pts):
            return False
        times = self._seconds(pts)
        ordinals = pick(times)
        slots = {int(pts[ordinal]): slot for slot, ordinal in enumerate(ordinals)}
        targets = [int(order[ordinal]) for ordinal in ordinals]
        pixels = {}
        for frame in _frames(self._source, runs(packets, targets), set(targets)):
            if frame.pts in slots:
                pixels[slots[frame.pts]] = self._convert(frame)
        if len(pixels) < len(ordinals):
            return False
        self._keep([pixels[slot] for slot in range(len(ordinals))], times, ordinals)
        return True

    def counted(self, pick: Pick) -> None:
        """Decodes everything and counts; twice where there are more or fewer frames than packets."""
        num_packets = len(self._source.packets)
        guessed = pick(np.arange(num_packets) / self._fps) if num_packets else []
        pts, pixels = self._everything(set(guessed))
        if not pts:
            raise VideoError(_summary(self._source.problems) or "no picture in the stream")
        times = self._counted_times(pts)
        ordinals = self._nearest(pick, pts) or pick(times)
        if not set(ordinals) <= pixels.keys():
            pixels = self._everything(set(ordinals))[1]
        self._keep([pixels[ordinal] for ordinal in ordinals], times, ordinals)

    def _everything(self, ordinals: set[int]) -> tuple[list[int | None], dict[int, np.ndarray]]:
        """The times of all frames in the order they come out, and pixels of some."""
        pts, pixels = [], {}
        for ordinal, frame in enumerate(_frames(self._source, [Run(0, len(self._source.packets) - 1)])):
            pts.append(frame.pts)
            if ordinal in ordinals:
                pixels[ordinal] = self._convert(frame)
        return pts, pixels

    def _nearest(self, pick: Pick, pts: list[int | None]) -> list[int] | None:
        """In a damaged stream with times: ordinals of the decoded frames nearest to the ones that were
        meant.
        """
        packets = self._source.packets
        if not (self._source.problems and _can_plan(self._source)) or None in pts:
            return None
        meant_pts = np.asarray(packets.pts)[packets.shown_in_order()]
        meant = meant_pts[pick(self._seconds(meant_pts))]
        return [int(np.abs(np.asarray(pts) - moment).argmin()) for moment in meant]

    def _counted_times(self, pts: list[int | None]) -> np.ndarray:
        """Seconds of the frames as they came out; by the frame rate where their times are missing or
        out of order.
        """
        if None in pts or (np.diff(pts) <= 0).any():
            return np.arange(len(pts)) / self._fps
        return self._seconds(np.asarray(pts))

    def _seconds(self, pts: np.ndarray) -> np.ndarray:
        return (pts - pts[0]) * float(self._source.stream.time_base)

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        if frame.width * frame.height > MAX_PIXELS:
            raise VideoError(
                f"a frame of {frame.width} x {frame.height} pixels is over the limit of {MAX_PIXELS:,}"
            )
        if frame.is_corrupt:
            self._source.problems.append("a frame is broken")
        return preprocess(frame, self._size, self._reformatter)

    def _keep(self, pixels: list[np.ndarray], times: np.ndarray, ordinals: list[int]) -> None:
        self.pixels, self.times = pixels, [times[ordinal] for ordinal in ordinals]
        self.duration = float(times[-1] * len(times) / max(len(times) - 1, 1)) or 1 / self._fps


def _frames(source: Source, plan: list[Run], targets: set[int] | None = None) -> Iterator[av.VideoFrame]:
    """The pictures that the runs of packets give, in the order they come out of the decoder.

    With `targets` (positions of packets) pictures that are neither a target nor referred to may be left
    out. A packet that cannot be decoded is noted among the source's problems, and the next one tried.
    """
    packets, decoder = source.replay(), source.decoder
    can_skip = targets is not None and decoder.name in SKIPPING_DECODERS
    skips, decoder.skip_frame = False, "DEFAULT"
    waiting = iter(plan)
    run = next(waiting, None)
    for position, packet in enumerate(packets):
        if run is None:
            return
        if position < run.first:
            continue
        source.check_time()
        if can_skip and skips is (position in targets):
            skips = not skips
            decoder.skip_frame = "NONREF" if skips else "DEFAULT"
        yield from _sent(source, packet)
        if position == run.last:
            yield from _sent(source, None)
            decoder.flush_buffers()
            run = next(waiting, None)


def _sent(source: Source, packet: av.Packet | None) -> list[av.VideoFrame]:
    try:
        return source.decoder.decode(packet)
    except av.FFmpegError as error:
        source.problems.append(f"a packet cannot be decoded: {reason(error)}")
        return []


def _summary(problems: list[str]) -> str | None:
    """One line for a list of problems, each kind with how often it came."""
    counts = {problem: problems.count(problem) for problem in dict.fromkeys(problems)}
    return "; ".join(f"{what} ({n} times)" if n > 1 else what for what, n in counts.items()) or None
