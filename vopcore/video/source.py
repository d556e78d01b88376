"""A video file opened for decoding: its video stream, its packets, and refusals that need no decoding."""

import re
import stat
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Self, TypeAlias

import av
from av.packet import Packet
from av.stream import Discard, Disposition

from vopcore.video.damage import Damage, LogLine
from vopcore.video.plan import NO_PTS, Packets
from vopcore.video.reorder import PictureTypes

VideoPacket: TypeAlias = "Packet[av.VideoStream]"

# Seconds for one video, from opening it to its last frame.
TIME_LIMIT = 120.0

# The largest picture of the largest H.264 and HEVC levels.
MAX_PIXELS = 8192 * 4352

# No camera films strips; resized by their short side they would take gigabytes.
MAX_ASPECT = 32

# A longer stream is read from the file twice instead of kept in memory.
HELD_BYTES = 64 * 2**20

# Packets that are read between two looks at the clock.
CHECKED_PACKETS = 64

# What a packet in memory takes beside its data.
PACKET_BYTES = 1000

# Who writes in the log while bytes are read.
NAMELESS = ""

# Containers that hold their pictures themselves. Playlists (hls, concat, dash), patterns of pictures
# (image2) and text drawn as video (tty) would open other files, or are no videos.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,asf,mpeg,mpegts,mpegvideo,m4v,h261,h263,h264,hevc,"
    "vvc,evc,av1,obu,ivf,vc1,vc1test,avs,avs2,avs3,cavsvideo,dirac,dnxhd,mjpeg,ogg,rm,mxf,mxf_opatom,gxf,nut,"
    "dv,wtv,gif,apng,yuv4mpegpipe,swf,nsv,amv,ivr,lvf,vob,pva,ty"
)

NOT_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class VideoError(ValueError):
    """A video of which nothing can be shown.

    The message is the reason, in one line, without the name of the file, so that equal reasons can be
    counted; `file` is the name, where there is one.
    """

    def __init__(self, reason: str, file: str | None = None) -> None:
        one_line = " ".join(reason.split())
        super().__init__(one_line)
        self.file = file


class Source:
    """One video stream of one file. `scan` reads all packets without decoding, `replay` gives them again.

    Opening it is the guard for every file that somebody else made: nothing but an ordinary file is opened,
    nothing but the file itself is read, and after `time_limit` seconds, counted from the opening, it ends.
    Raises VideoError for what is refused: no video, pictures of more than MAX_PIXELS or longer than
    MAX_ASPECT times their width.

    `log` is the list that `decoder_log` fills; errors in it are noted in `damage`.
    """

    def __init__(
        self,
        file: str | Path | BinaryIO,
        time_limit: float | None = TIME_LIMIT,
        log: list[LogLine] | None = None,
    ) -> None:
        self._file = file
        self._time_limit = time_limit
        self._deadline: float | None = None
        if time_limit is not None:
            self._deadline = time.monotonic() + time_limit

        # None where the stream is too long to be kept in memory.
        self._held: list[VideoPacket] | None = []
        self.log: list[LogLine] = [] if log is None else log
        self.packets = Packets()
        self.damage = Damage()
        self._open()
        self._note_container_log()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    @property
    def container_name(self) -> str:
        """FFmpeg's name of the container's format, such as "matroska,webm"."""
        return self._container.format.name

    @property
    def time_base(self) -> Fraction:
        """Seconds that one unit of the stream's times lasts."""
        time_base = self.stream.time_base
        assert time_base is not None, "FFmpeg gives every stream of a file one"
        return time_base

    def _open(self) -> None:
        """A fresh container and decoder, standing at the file's first byte."""
        name: str | BinaryIO
        if isinstance(self._file, str | Path):
            check_ordinary(self._file)

            # With this before it a colon in the name is no protocol.
            name = f"file:{self._file}"
        else:
            self._file.seek(0)
            name = self._file

        options = {
            "format_whitelist": CONTAINERS,
            "protocol_whitelist": "file",
            "max_pixels": str(MAX_PIXELS),
        }
        try:
            self._container = av.open(
                name,
                mode="r",
                metadata_errors="ignore",
                options=options,
                buffer_size=2**20,
                timeout=self._time_limit,
            )
        except av.FFmpegError as error:
            # A time-out is no fault of the file's format.
            self.check_time()
            cause = self._why_not_opened(error)
            raise VideoError(f"not a readable video file: {cause}") from error

        try:
            self.stream = _video_stream(self._container)
        except VideoError:
            self._container.close()
            raise

        # Parallelism comes from many videos: frame threads cost 10-30 % CPU. The count is for decoders with
        # threads of their own (AV1).
        self.decoder = self.stream.codec_context
        self.decoder.thread_type = "NONE"
        self.decoder.thread_count = 1

        # Also for a picture that grows in mid-stream.
        self.decoder.options = {"max_pixels": str(MAX_PIXELS)}

    def _why_not_opened(self, error: av.FFmpegError) -> str:
        # FFmpeg's own words would be "invalid data", which a playlist is not.
        for _, _, message in self.log:
            if "whitelist" in message:
                return "not one of the containers that videos are stored in"
        return reason(error)

    def check_time(self) -> None:
        """Raises VideoError once the time limit has passed."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise VideoError(f"decoding took longer than the limit of {self._time_limit:g} s")

    def scan(self) -> None:
        """Reads every packet once. A file that breaks off keeps what was read, with the problem noted."""
        held_bytes = 0
        skips_hidden = self.decoder.name in ("vp8", "libvpx")

        # Such files have decoding times: the order of showing stands in the pictures alone.
        picture_types = None
        if self.container_name == "avi" and self.decoder.name == "mpeg4":
            picture_types = PictureTypes()

        for position, packet in enumerate(self._demux(notes_problems=True)):
            if packet.is_corrupt:
                self.damage.add(position, "a packet is cut short")
                self.damage.add_file_problem("a packet is cut short")
            if self.log:
                self._note_log(position)

            # Not to be looked at: what an edit list cuts, and VP8's invisible references.
            is_shown = not packet.is_discard
            if skips_hidden and is_shown:
                is_shown = bool(memoryview(packet)[0] & 0x10)

            self.packets.add(
                packet.pts,
                packet.is_keyframe,
                is_shown,
                packet.duration,
            )
            if picture_types is not None:
                picture_types.add(bytes(packet))

            if self._held is not None:
                self._held.append(packet)
                held_bytes += packet.size + PACKET_BYTES
                if held_bytes > HELD_BYTES:
                    self._held = None

        if picture_types is not None:
            self.packets.ranks = picture_types.ranks()
        self._note_container_log()
        self._note_missing_end()

    def _note_log(self, position: int) -> None:
        """Takes what was written while the packet at `position` was read.

        The container's lines concern the file, the others the packet.
        """
        for _, writer, message in self.log:
            if writer in (self.container_name, NAMELESS):
                self.damage.add_file_problem(message)
            else:
                self.damage.add(position, message)
        self.log.clear()

    def _note_container_log(self) -> None:
        """Takes the container's lines only: while it is opened, other streams are looked at too."""
        for _, writer, message in self.log:
            if writer in (self.container_name, NAMELESS):
                self.damage.add_file_problem(message)
        self.log.clear()

    def note_decoder_log(self, position: int, is_open: bool) -> None:
        """Takes what the decoder wrote about the packet at `position`.

        `is_open`: the group before an open one was left out on purpose.
        """
        for _, writer, message in self.log:
            # Reading the packets a second time repeats what the container said at the first. (GIF's has the
            # decoder's name.)
            if writer == self.container_name and writer != self.decoder.name:
                continue

            # H.264 is told to forget a picture that it never saw.
            if is_open and message.startswith("mmco: unref short failure"):
                continue

            self.damage.add(position, message)
        self.log.clear()

    def _note_missing_end(self) -> None:
        """Notes where the pictures end long before the header says.

        Matroska, or MP4 with its index first, cut off between two packets ends like a whole one.
        """
        if not self.packets.are_timed() or self.packets.last_pts == NO_PTS:
            return
        promised = self._promised_seconds()
        if promised is None:
            return

        # Headers are rounded, and sound may go on for a moment.
        end = float(self.packets.end() * self.time_base)
        slack = max(1.0, 0.1 * end)
        if promised > end + slack:
            self.damage.add_file_problem(f"the pictures end at {end:.1f} s of {promised:.1f} s")

    def _promised_seconds(self) -> float | None:
        """How long the pictures last by the header; None where that cannot be trusted."""
        if "matroska" in self.container_name:
            header = _clock_seconds(self.stream.metadata.get("DURATION"))
            container_microseconds = self._container.duration or 0
            return header or container_microseconds / 1e6

        # The track's own duration; sound may be longer.
        if "mp4" in self.container_name:
            duration = self.stream.duration or 0
            return float(duration * self.time_base)
        return None

    def replay(self) -> Iterator[VideoPacket]:
        """The packets that `scan` read, in the same order. May put a new `decoder` in place, at once."""
        if self._held is not None:
            return iter(self._held)

        self._container.close()
        self._open()
        return self._demux()

    def _demux(self, notes_problems: bool = False) -> Iterator[VideoPacket]:
        """The packets of the video stream, in decoding order."""
        for stream in self._container.streams:
            if stream.index != self.stream.index:
                stream.discard = Discard.all

        try:
            for number, packet in enumerate(self._container.demux(self.stream)):
                if number % CHECKED_PACKETS == 0:
                    self.check_time()

                # The last one is empty: "no more".
                if packet.size:
                    yield packet
        except IndexError:
            # After the last packet PyAV stumbles over a stream that the header did not announce.
            return
        except av.FFmpegError as error:
            self.check_time()
            if notes_problems:
                self.damage.add_file_problem(f"the file breaks off: {reason(error)}")


def probe(file: str | Path | BinaryIO, time_limit: float | None = TIME_LIMIT) -> None:
    """Opens the file as decoding would and reads its header. Raises VideoError if that fails."""
    with Source(file, time_limit):
        pass


def reason(error: av.FFmpegError) -> str:
    """What FFmpeg says, without the file's name."""
    return error.strerror or type(error).__name__


def check_ordinary(file: str | Path) -> None:
    """Refuses what is not an ordinary file before it is opened. Raises VideoError.

    Opening a pipe or a device can wait for ever.
    """
    try:
        mode = Path(file).stat().st_mode
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"not a readable video file: {cause}") from error

    if not stat.S_ISREG(mode):
        kind = NOT_FILES.get(stat.S_IFMT(mode), "something else")
        raise VideoError(f"not a video file but {kind}")


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The best video stream that is not a cover picture."""
    videos = []
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            videos.append(stream)

    if not videos:
        others: set[str] = {stream.type for stream in container.streams if stream.type != "video"}
        if container.streams.video:
            others.add("a cover picture")
        contents = ", ".join(sorted(others)) or "an empty container"
        raise VideoError(f"no video stream, only {contents}")

    # FFmpeg's best may be the cover.
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    if stream.codec_context is None:
        raise VideoError("the video's codec is unknown")
    check_shape(stream.codec_context.width, stream.codec_context.height)
    return stream


def check_shape(width: int, height: int) -> None:
    """Raises VideoError for pictures that are too large or too narrow to be footage."""
    if width * height > MAX_PIXELS:
        raise VideoError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")

    short = max(min(width, height), 1)
    if max(width, height) > MAX_ASPECT * short:
        raise VideoError(f"{width} x {height} pixels are longer than {MAX_ASPECT} times their other side")


def _clock_seconds(clock: str | None) -> float | None:
    """Seconds of "00:01:02.500000000", as Matroska writes the length of a stream.

    None for anything else.
    """
    match = re.fullmatch(
        r"(\d+):(\d+):(\d+(?:\.\d*)?)",
        clock or "",
        re.ASCII,
    )
    if match is None:
        return None

    hours, minutes, seconds = match.groups()
    seconds_of_hours = float(hours) * 3600
    seconds_of_minutes = float(minutes) * 60
    return seconds_of_hours + seconds_of_minutes + float(seconds)
