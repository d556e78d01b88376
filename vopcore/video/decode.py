"""Frames of a video, exactly the ones asked for, for the least decoding.

Two ways give the same pictures. Where packets carry times, the wanted frames are planned on packets and
only what they need is decoded, without pictures that nothing refers to. Elsewhere (raw streams, AVI with
B-frames, broken files) everything is decoded and frames are counted. No seeking: it gives wrong frames in
open groups, AVI and fragmented files.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np

from vopcore.video.damage import decoder_log
from vopcore.video.plan import Run, end_of, merge, needed_run, span
from vopcore.video.preprocess import Geometry, Interpolation, Preprocessor, Resize
from vopcore.video.sample import SAMPLERS
from vopcore.video.source import (
    TIME_LIMIT,
    Source,
    VideoError,
    VideoPacket,
    check_shape,
    reason,
)
from vopcore.video.thumbnail import ThumbnailMaker

# Rises when the same file would give other pixels.
DECODER_VERSION = 2

# Decoders that read `skip_frame` before each packet; the others read it once or not at all.
SKIPPING_DECODERS = {"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "vp8"}

# Pictures that a decoder may hold back before it gives them in the order of their times.
MAX_REORDERED = 16
DEFAULT_FPS = 25.0

Window = tuple[float | None, float | None]
"""Start and end in seconds; None: the video's own."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Sampled frames of one video, or of one moment of it.

    `squares` has, for each size asked for, one uint8 [size, size, 3] RGB picture per frame; moments that
    share frames share these arrays. `thumbnails`: of each frame a JPEG, where they were asked for. `times`
    are seconds after the video's first frame. `status` is "ok" or "damaged" (`error` says how). `width`,
    `height` are those of the stored pictures, before rotation; `duration` (seconds) is the whole video's.
    """

    squares: dict[int, list[np.ndarray]]
    thumbnails: list[bytes]
    times: list[float]
    status: str
    error: str | None
    width: int
    height: int
    fps: float
    duration: float
    codec: str

    @property
    def pixels(self) -> np.ndarray:
        """The frames in the first size asked for, uint8 [F, size, size, 3]; copied at each call."""
        first_size = next(iter(self.squares))
        return self.pixels_of(first_size)

    def pixels_of(self, size: int) -> np.ndarray:
        """The frames in one of the sizes asked for, uint8 [F, size, size, 3]; copied at each call."""
        return np.stack(self.squares[size])


def decode(
    file: str | Path | BinaryIO,
    *,
    count: int,
    size: int | Sequence[int] = 224,
    sampler: str = "uniform",
    start: float | None = None,
    end: float | None = None,
    resize: Resize = "shortest",
    interpolation: Interpolation = "bicubic",
    time_limit: float | None = TIME_LIMIT,
) -> Decoded:
    """At most `count` frames of the moment [start, end) seconds, chosen by a sampler of SAMPLERS.

    Fewer where it has fewer. `size` in pixels; several sizes cost one decoding. `resize` and `interpolation`
    are those of the CLIP's own preprocessing. Raises VideoError, with the reason in one line, when no frame
    can be decoded or `time_limit` seconds have passed; a decoder that hangs inside one packet must be ended
    from outside.
    """
    moments = decode_moments(
        file,
        [(start, end)],
        count=count,
        size=size,
        sampler=sampler,
        resize=resize,
        interpolation=interpolation,
        time_limit=time_limit,
    )
    return moments[0]


def decode_moments(
    file: str | Path | BinaryIO,
    windows: Sequence[Window],
    *,
    count: int,
    size: int | Sequence[int] = 224,
    sampler: str = "uniform",
    resize: Resize = "shortest",
    interpolation: Interpolation = "bicubic",
    thumbnails: bool = False,
    time_limit: float | None = TIME_LIMIT,
) -> list[Decoded]:
    """What `decode` gives for each window (start, end), in one pass; with `thumbnails` those too.

    Every frame is decoded and resized once, however many windows want it. All frames are held in memory at
    once, 150 kB each at 224 pixels. Raises VideoError as `decode` does, also where a single window begins
    after the video's end.
    """
    sizes = [size] if isinstance(size, int) else list(size)
    geometries = [Geometry(one_size, resize, interpolation) for one_size in sizes]
    bounds = [_bounds(start, end) for start, end in windows]
    selection = Selection(bounds, sampler, count)
    name = str(file) if isinstance(file, str | Path) else None

    try:
        with decoder_log() as log, Source(file, time_limit, log) as source:
            source.scan()
            reader = Reader(source, selection, geometries, thumbnails)

            # Counting decodes everything: only where packets do not tell enough.
            frames = reader.planned() or reader.counted()
            return [reader.decoded(frames, ordinals) for ordinals in frames.windows]
    except VideoError as error:
        error.file = name
        raise
    except MemoryError as error:
        raise VideoError("decoding it needs more memory than there is", name) from error
    except Exception as error:
        # Whatever a decoder raises concerns this file and no other.
        raise VideoError(f"{type(error).__name__}: {error}", name) from error


@dataclass(frozen=True)
class Selection:
    """Which frames are wanted: `count` of each window by a sampler's choice."""

    windows: list[Window]
    sampler: str
    count: int

    def ordinals(
        self,
        times: np.ndarray,
        last_duration: float,
        fps: float,
    ) -> list[list[int]]:
        """For each window the ordinals of its frames among all.

        times: seconds of all frames, ascending. last_duration: how long the last one is shown. Raises
        VideoError for a window after the end.
        """
        choose = SAMPLERS[self.sampler]
        windows = []
        for start, end in self.windows:
            try:
                first, stop = span(times, start, end, last_duration)
            except ValueError as error:
                raise VideoError(str(error)) from error

            # The sampler counts from the window's first frame.
            indices = choose(stop - first, fps, self.count)
            windows.append([first + index for index in indices])
        return windows


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The wanted frames of one video, by ordinal: their position among all frames as they are shown."""

    windows: list[list[int]]
    times: np.ndarray
    """Seconds, of all frames, wanted or not."""
    duration: float
    pictures: "Pictures"
    needs: dict[int, Run]
    """The packets that a frame is decoded from."""
    all_decoded: bool


class Pictures(NamedTuple):
    """What is kept of the wanted frames, by ordinal."""

    squares: dict[int, list[np.ndarray]]
    """Of each frame one picture per geometry."""
    thumbnails: dict[int, bytes]
    """Empty where none were asked for."""


class DecodedStream(NamedTuple):
    """All frames of a stream, in the order they come out of the decoder."""

    pts: list[int | None]
    positions: list[int]
    """The packet with which each frame came."""
    pictures: Pictures


class Reader:
    """Decodes what a selection wants of one source, by plan or by counting."""

    def __init__(
        self,
        source: Source,
        selection: Selection,
        geometries: list[Geometry],
        thumbnails: bool,
    ) -> None:
        self._source = source
        self._selection = selection
        self._geometries = geometries
        self._wants_thumbnails = thumbnails

        stream = source.stream
        self._fps = float(stream.guessed_rate or stream.average_rate or DEFAULT_FPS)
        self._time_base = float(source.time_base)
        self._keys = source.packets.key_positions()

    def planned(self) -> Frames | None:
        """Decodes what the wanted packets need.

        None where that cannot be planned, or where one of them gave no picture.
        """
        packets = self._source.packets
        order = packets.shown_in_order()
        if not self._can_plan() or not len(order):
            return None

        # Where pictures are shown in another order than that of their times, each still has the time of one.
        pts = np.asarray(packets.pts)[order]
        times = self._seconds(np.sort(pts))
        last_duration = packets.last_duration * self._time_base
        windows = self._selection.ordinals(
            times,
            last_duration,
            self._fps,
        )
        wanted = _union(windows)

        # Of each wanted frame: its packet, the packets that one needs, and the time to know it by.
        ordinal_at = {}
        targets = set()
        needs = {}
        for ordinal in wanted:
            position = int(order[ordinal])
            targets.add(position)
            needs[ordinal] = needed_run(packets, self._keys, position)
            ordinal_at[int(pts[ordinal])] = ordinal

        before = self._source.damage.mark()
        keeper = Keeper(self._geometries, self._wants_thumbnails)
        plan = merge(list(needs.values()))
        for _, frame in self._pictures(plan, targets):
            if frame.pts in ordinal_at:
                keeper.add(ordinal_at[frame.pts], frame)
        pictures = keeper.finish()

        if len(pictures.squares) < len(wanted):
            # Everything is decoded again, and its damage noted again.
            self._source.damage.forget_since(before)
            return None

        return Frames(
            windows=windows,
            times=times,
            duration=end_of(times, last_duration),
            pictures=pictures,
            needs=needs,
            all_decoded=False,
        )

    def _can_plan(self) -> bool:
        """Whether the packets tell the order of the pictures.

        AVI gives decoding times: where pictures are reordered, their types must be known.
        """
        packets = self._source.packets
        if not packets.are_timed():
            return False
        if packets.ranks is not None:
            return True

        is_avi = self._source.container_name == "avi"
        return not (is_avi and self._source.decoder.has_b_frames)

    def counted(self) -> Frames:
        """Decodes everything and counts; twice where there are more or fewer frames than packets."""
        damage = self._source.damage
        before = damage.mark()
        everything = self._everything(self._guess())
        pts = everything.pts
        if not pts:
            raise VideoError(damage.causes() or "no picture in the stream")

        times, last_duration = self._counted_times(pts)
        windows = self._nearest(pts)
        if windows is None:
            windows = self._selection.ordinals(
                times,
                last_duration,
                self._fps,
            )

        # The guess was wrong: once more, and the same damage is noted only once.
        wanted = _union(windows)
        if not wanted <= everything.pictures.squares.keys():
            damage.forget_since(before)
            everything = self._everything(wanted)

        needs = {}
        for ordinal in wanted:
            position = everything.positions[ordinal]
            needs[ordinal] = self._counted_need(position)

        return Frames(
            windows=windows,
            times=times,
            duration=end_of(times, last_duration) or 1 / self._fps,
            pictures=everything.pictures,
            needs=needs,
            all_decoded=True,
        )

    def _guess(self) -> set[int]:
        """The frames that are wanted if every packet gives one."""
        num_packets = len(self._source.packets)
        if num_packets == 0:
            return set()

        times = np.arange(num_packets) / self._fps
        try:
            windows = self._selection.ordinals(
                times,
                0.0,
                self._fps,
            )
        except VideoError:
            # Windows after an end that is not known yet.
            return set()
        return _union(windows)

    def _everything(self, wanted: set[int]) -> "DecodedStream":
        """Decodes the whole stream, and keeps the pictures of the `wanted` ordinals."""
        pts: list[int | None] = []
        positions = []
        keeper = Keeper(self._geometries, self._wants_thumbnails)
        whole = Run(0, len(self._source.packets) - 1)

        for position, frame in self._pictures([whole], set()):
            ordinal = len(pts)
            if ordinal in wanted:
                keeper.add(ordinal, frame)
            pts.append(frame.pts)
            positions.append(position)

        return DecodedStream(pts, positions, keeper.finish())

    def _counted_need(self, position: int) -> Run:
        """The packets that a frame which came out with the packet at `position` may be decoded from."""
        held_back = MAX_REORDERED if self._source.decoder.has_b_frames else 0
        own_position = max(position - held_back, 0)
        first = needed_run(
            self._source.packets,
            self._keys,
            own_position,
        ).first
        return Run(first, position)

    def _nearest(self, pts: list[int | None]) -> list[list[int]] | None:
        """For each window the ordinals of the decoded frames nearest to the ones that were meant.

        Of a damaged stream with times; None where the stream is whole or has no times. The video begins with
        its first decoded picture: a capture may have been cut in mid-group.
        """
        packets = self._source.packets
        known_pts = [time for time in pts if time is not None]
        if not self._source.damage or not self._can_plan() or len(known_pts) < len(pts):
            return None
        if packets.ranks is not None:
            return None

        # What would have been chosen if every packet had given its picture.
        packet_pts = np.asarray(packets.pts)[packets.shown_in_order()]
        meant_pts = packet_pts[packet_pts >= min(known_pts)]
        times = self._seconds(meant_pts)
        last_duration = packets.last_duration * self._time_base
        windows = self._selection.ordinals(
            times,
            last_duration,
            self._fps,
        )

        decoded_pts = np.asarray(known_pts)
        wanted = _union(windows)
        num_missing = sum(meant_pts[ordinal] not in decoded_pts for ordinal in wanted)
        if num_missing:
            self._source.damage.add_file_problem(
                f"{num_missing} of {len(wanted)} frames are missing, their neighbours stand for them"
            )

        nearest = {}
        for ordinal in wanted:
            distances = np.abs(decoded_pts - meant_pts[ordinal])
            nearest[ordinal] = int(distances.argmin())

        nearest_windows = []
        for ordinals in windows:
            nearest_windows.append([nearest[ordinal] for ordinal in ordinals])
        return nearest_windows

    def _counted_times(self, pts: list[int | None]) -> tuple[np.ndarray, float]:
        """Seconds of the frames as they came out, and for how long the last is shown (0: not known).

        By the frame rate where their times are missing or out of order.
        """
        known_pts = [time for time in pts if time is not None]
        if len(known_pts) < len(pts) or (np.diff(known_pts) <= 0).any():
            times = np.arange(len(pts)) / self._fps
            return times, 0.0

        # Only of the packet shown last is the duration remembered.
        packets = self._source.packets
        last_duration = 0
        if known_pts[-1] == packets.last_pts:
            last_duration = packets.last_duration

        times = self._seconds(np.asarray(known_pts))
        return times, last_duration * self._time_base

    def _seconds(self, pts: np.ndarray) -> np.ndarray:
        return (pts - pts[0]) * self._time_base

    def _pictures(
        self,
        plan: list[Run],
        targets: set[int],
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """The pictures that the runs of packets give, each with the position of the packet it came with.

        They are in the order in which they come out of the decoder. Pictures that are neither at `targets`
        (positions of packets) nor referred to may be left out, unless there are no targets. What is broken is
        noted in the source's damage, and the next packet tried.
        """
        source = self._source
        packets = source.replay()
        decoder = source.decoder
        can_skip = bool(targets) and decoder.name in SKIPPING_DECODERS
        decoder.skip_frame = "DEFAULT"
        skips = False
        has_leading = False

        for position, packet, run in _packets_in(plan, packets):
            source.check_time()

            # The setting costs more than the comparison: it is made where it changes.
            skips_now = can_skip and position not in targets
            if skips_now != skips:
                decoder.skip_frame = "NONREF" if skips_now else "DEFAULT"
                skips = skips_now

            # Pictures after the run's key picture that are shown before it refer to pictures of the group
            # before. Nobody wants them (else the run would start there), so they are not damage.
            is_unwanted = bool(targets) and position not in targets
            leads = is_unwanted and source.packets.shows_before(position, run.first)
            has_leading = leads or (has_leading and position != run.first)

            yield from self._send(
                position,
                packet,
                notes_damage=not leads,
                is_open=has_leading,
            )

            # What the decoder still holds back comes out; the next run starts afresh.
            if position == run.last:
                yield from self._send(position, None)
                decoder.flush_buffers()

    def _send(
        self,
        position: int,
        packet: "VideoPacket | None",
        notes_damage: bool = True,
        is_open: bool = False,
    ) -> list[tuple[int, av.VideoFrame]]:
        """The pictures that come out when one packet goes in; None ends a run.

        `is_open`: the run began in an open group, without the group before it.
        """
        source = self._source
        before = source.damage.mark()
        frames = []

        # A broken packet gives no picture, and the next one is tried.
        try:
            frames = source.decoder.decode(packet)
        except MemoryError as error:
            raise VideoError("decoding it needs more memory than there is") from error
        except av.FFmpegError as error:
            source.damage.add(position, f"a packet cannot be decoded: {reason(error)}")

        if source.log:
            source.note_decoder_log(position, is_open)

        for frame in frames:
            check_shape(frame.width, frame.height)
            if frame.is_corrupt:
                source.damage.add(position, "a picture is marked as broken")

        if not notes_damage:
            source.damage.forget_since(before)
        return [(position, frame) for frame in frames]

    def decoded(self, frames: Frames, ordinals: list[int]) -> Decoded:
        """One window's frames, and what damage there was on the way to them."""
        source = self._source
        needs = [frames.needs[ordinal] for ordinal in ordinals]
        error = source.damage.summary(needs, frames.all_decoded)

        pictures = frames.pictures
        squares = {}
        for index, geometry in enumerate(self._geometries):
            squares[geometry.size] = [pictures.squares[ordinal][index] for ordinal in ordinals]
        thumbnails = []
        if self._wants_thumbnails:
            thumbnails = [pictures.thumbnails[ordinal] for ordinal in ordinals]

        # Microseconds are finer than any time base that matters.
        times = [round(float(frames.times[ordinal]), 6) for ordinal in ordinals]
        return Decoded(
            squares=squares,
            thumbnails=thumbnails,
            times=times,
            status="ok" if error is None else "damaged",
            error=error,
            width=source.decoder.width,
            height=source.decoder.height,
            fps=self._fps,
            duration=round(frames.duration, 6),
            codec=source.decoder.codec.canonical_name,
        )


class Keeper:
    """Makes of each wanted picture, as it comes out of the decoder, what is kept of it."""

    def __init__(self, geometries: list[Geometry], thumbnails: bool) -> None:
        self._preprocessor = Preprocessor(geometries)
        self._maker = ThumbnailMaker() if thumbnails else None
        self._thumbnails: dict[int, bytes] = {}

    def add(self, ordinal: int, frame: av.VideoFrame) -> None:
        self._preprocessor.add(ordinal, frame)
        if self._maker is not None:
            self._thumbnails[ordinal] = self._maker.make(frame)

    def finish(self) -> Pictures:
        return Pictures(self._preprocessor.finish(), self._thumbnails)


def _packets_in(
    plan: list[Run],
    packets: Iterable[VideoPacket],
) -> Iterator[tuple[int, VideoPacket, Run]]:
    """The packets of the plan's runs, each with its position and its run; the rest is passed over."""
    remaining_runs = iter(plan)
    run = next(remaining_runs, None)

    for position, packet in enumerate(packets):
        if run is None:
            return
        if position < run.first:
            continue

        yield position, packet, run
        if position == run.last:
            run = next(remaining_runs, None)


def _union(windows: list[list[int]]) -> set[int]:
    """The ordinals of all windows; they may share frames."""
    union: set[int] = set()
    for ordinals in windows:
        union.update(ordinals)
    return union


def _bounds(start: float | None, end: float | None) -> Window:
    """The window's bounds as floats. Raises VideoError for bounds that bound nothing."""
    first = _seconds(start)
    last = _seconds(end)
    if first is not None and last is not None and last <= first:
        raise VideoError(f"the moment ends at {last:g} s, before it starts at {first:g} s")
    return first, last


def _seconds(bound: float | None) -> float | None:
    """A bound as a float; one that is too large for it (JSON has integers of any length) is never reached."""
    if bound is None:
        return None
    try:
        seconds = float(bound)
    except OverflowError:
        seconds = math.inf

    if math.isnan(seconds):
        raise VideoError("the moment's start or end is not a number")
    return seconds
