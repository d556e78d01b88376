"""A video file opened for decoding: its video stream, its packets, and refusals that need no decoding."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

import av
from av.packet import Packet
from av.stream import Discard, Disposition

from vopcore.video.plan import Packets

MAX_PIXELS = 8192 * 4352  # the largest picture of the largest H.264 and HEVC levels
HELD_BYTES = 64 * 2**20  # a longer stream is read from the file twice instead of kept in memory


class VideoError(ValueError):
    """A video of which nothing can be shown; the message is the reason, in one line, without the file's
    name.
    """


class Source:
    """One video stream of one file. `scan` reads all packets without decoding, `replay` gives them again.

    Raises VideoError where the file holds no video, or pictures of more than MAX_PIXELS, or after
    `time_limit` seconds.
    """

    def __init__(self, file: str | Path | BinaryIO, time_limit: float | None = None) -> None:
        self._file = file
        self._time_limit = time_limit
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self.packets = Packets()
        self.problems: list[str] = []
        self._held: list[Packet] | None = []
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    def _open(self) -> None:
        """A fresh container and decoder, standing at the file's first byte."""
        if isinstance(self._file, str | Path):
            name = f"file:{self._file}"  # a colon in the name is no protocol
        else:
            self._file.seek(0)
            name = self._file
        limits = {"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "file"}
        try:
            self._container = av.open(name, metadata_errors="ignore", options=limits, buffer_size=2**20)
        except av.FFmpegError as error:
            raise VideoError(f"not a readable video file: {reason(error)}") from error
        try:
            self.stream = _video_stream(self._container)
            self.decoder = self.stream.codec_context
            self.decoder.thread_type = (
                "NONE"  # parallelism comes from many videos: frame threads cost 10-30 % CPU
            )
            self.decoder.options = {
                "max_pixels": str(MAX_PIXELS)
            }  # also for a picture that grows in mid-stream
        except VideoError:
            self._container.close()
            raise

    def check_time(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise VideoError(f"decoding took longer than the limit of {self._time_limit:g} s")

    def scan(self) -> None:
        """Reads every packet once. A file that breaks off keeps what was read, with the problem noted."""
        held_bytes = 0
        for packet in self._demux(note_problems=True):
            self.packets.add(packet.pts, packet.is_keyframe, _is_shown(packet, self.decoder.name))
            if packet.is_corrupt:
                self.problems.append("a packet is cut short")
            if self._held is not None:
                self._held.append(packet)
                held_bytes += packet.size
                if held_bytes > HELD_BYTES:
                    self._held = None
        self._note_missing_end()

    def _note_missing_end(self) -> None:
        """Matroska, or MP4 with its index first, cut off between two packets ends like a whole one, but its
        header promises more.
        """
        if not self.packets.are_timed():
            return
        kind = self._container.format.name
        if "matroska" in kind:
            promised = _seconds(self.stream.metadata.get("DURATION")) or (self._container.duration or 0) / 1e6
        elif "mp4" in kind:  # the track's own duration; sound may be longer
            promised = float((self.stream.duration or 0) * self.stream.time_base)
        else:
            return
        found = float(max(self.packets.pts) * self.stream.time_base)
        if promised > found + max(1.0, 0.1 * found):
            self.problems.append(f"the pictures end at {found:.1f} s of {promised:.1f} s")

    def replay(self) -> Iterator[Packet]:
        """The packets that `scan` read, in the same order. May put a new `decoder` in place, at once."""
        if self._held is not None:
            return iter(self._held)
        self._container.close()
        self._open()
        return self._demux()

    def _demux(self, note_problems: bool = False) -> Iterator[Packet]:
        for stream in self._container.streams:
            if stream.index != self.stream.index:
                stream.discard = Discard.all
        try:
            for packet in self._container.demux(self.stream):
                self.check_time()
                if packet.size:  # the last one is empty: "no more"
                    yield packet
        except av.FFmpegError as error:
            if note_problems:
                self.problems.append(f"the file breaks off: {reason(error)}")


def reason(error: av.FFmpegError) -> str:
    """What FFmpeg says, without the file's name."""
    return error.strerror or type(error).__name__


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The best video stream that is not a cover picture."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        others = {stream.type for stream in container.streams if stream.type != "video"}
        others |= {"a cover picture"} if container.streams.video else set()
        raise VideoError(f"no video stream, only {', '.join(sorted(others)) or 'an empty container'}")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    if stream.codec_context is None:
        raise VideoError("the video's codec is unknown")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise VideoError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")
    return stream


def _seconds(clock: str | None) -> float | None:
    """Seconds of "00:01:02.500000000", as Matroska writes the length of a stream; None for anything
    else.
    """
    parts = (clock or "").split(":")
    if len(parts) != 3 or not all(part.replace(".", "", 1).isdigit() for part in parts):
        return None
    hours, minutes, seconds = map(float, parts)
    return hours * 3600 + minutes * 60 + seconds


def _is_shown(packet: Packet, codec: str) -> bool:
    """Whether a packet makes a picture to look at: not those an edit list cuts, nor VP8's invisible
    references.
    """
    if packet.is_discard:
        return False
    return codec not in ("vp8", "libvpx") or bool(bytes(packet)[0] & 0x10)
