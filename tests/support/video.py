"""Makes small video files of every awkward kind with PyAV: each frame shows its own number."""

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np


def picture(number: int, width: int = 160, height: int = 96) -> np.ndarray:
    """RGB uint8 [height, width, 3]: `number` in binary as 4 x 4 black and white tiles over a moving
    background.
    """
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack(
        [(x + 3 * number) % 256, (y * 2 + 5 * number) % 256, np.full_like(x, 7 * number % 256)], axis=-1
    )
    bits = np.array([number >> bit & 1 for bit in range(16)]).reshape(4, 4)
    tile = height // 8
    mark = np.kron(bits * 235 + 10, np.ones((tile, tile)))
    top, left = (height - 4 * tile) // 2, (width - 4 * tile) // 2
    rgb[top : top + 4 * tile, left : left + 4 * tile] = mark[:, :, None]
    return rgb.astype(np.uint8)


def number_in(rgb: np.ndarray) -> int:
    """The number that a picture shows, cropped and resized to a square of any size."""
    size = rgb.shape[0]
    tile = size // 8
    first = (size - 4 * tile) // 2
    grey = rgb.astype(int).mean(axis=-1)
    centres = [first + int((i + 0.5) * tile) for i in range(4)]
    bits = [grey[y - 2 : y + 3, x - 2 : x + 3].mean() > 128 for y in centres for x in centres]
    return sum(1 << bit for bit, on in enumerate(bits) if on)


def write_video(
    path: Path,
    num_frames: int = 60,
    codec: str = "libx264",
    rate: int = 25,
    width: int = 160,
    height: int = 96,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times: Iterable[int] | None = None,
    gop: int = 12,
    b_frames: int = 2,
    rotation: int = 0,
    format: str | None = None,
    audio: bool = False,
) -> Path:
    """A video of `num_frames` numbered pictures; `times` (in 1/rate seconds) makes its rate vary."""
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for number, time in zip(range(num_frames), times or range(num_frames), strict=False):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            write_silence(container, sound, num_frames / rate)
    return path


def write_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    silence = av.AudioFrame.from_ndarray(
        np.zeros((1, int(16000 * seconds)), np.float32), format="fltp", layout="mono"
    )
    silence.sample_rate = 16000
    silence.pts = 0
    container.mux(stream.encode(silence))
    container.mux(stream.encode(None))


def numbers(path: Path) -> list[int]:
    """The numbers that a plain sequential decoding of all packets shows, packet by packet past broken
    ones.
    """
    found = []
    with av.open(str(path), metadata_errors="ignore") as container:
        container.streams.video[0].codec_context.thread_type = "NONE"  # threads lose frames of broken streams
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            found += [number_in(_square(frame.to_ndarray(format="rgb24"))) for frame in frames]
    return found


def _square(rgb: np.ndarray) -> np.ndarray:
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return rgb[top : top + side, left : left + side]
