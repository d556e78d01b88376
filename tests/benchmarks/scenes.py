"""Footage for benchmarks: a textured scene that pans and cuts, with film grain, so that codecs work as
they do on real video.
"""

from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter


def write_scene(
    path: Path,
    seconds: int,
    width: int,
    height: int,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    gop: int = 250,
    b_frames: int = 3,
    rate: int = 25,
    seed: int = 0,
) -> Path:
    """Writes the video unless it is there."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"part-{path.name}")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.codec_context.bit_rate = int(width * height * rate * 0.1)
        for rgb in frames(seconds * rate, width, height, rate, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    return partial.rename(path)


def frames(num: int, width: int, height: int, rate: int, seed: int):
    """RGB pictures: every four seconds another texture, which pans a pixel or two a frame."""
    rng = np.random.default_rng(seed)
    grain = rng.integers(0, 12, (8, height, width, 3), dtype=np.uint8)
    for number in range(num):
        if number % (4 * rate) == 0:
            scene, step = texture(rng, width * 2, height * 2), rng.integers(-2, 3, 2)
        y, x = (np.array([height, width]) // 2 + step * (number % (4 * rate)) // 2) % [height, width]
        yield scene[y : y + height, x : x + width] + grain[number % 8]


def texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Coarse and fine colour, values up to 240."""
    layers = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((6, 0.5), (24, 0.3), (96, 0.2)):
        small = rng.integers(0, 240, (cells, cells, 3), dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(small, format="rgb24")
        large = VideoReformatter().reformat(frame, width, height, interpolation="BICUBIC").to_ndarray()
        layers += weight * large
    return layers.clip(0, 240).astype(np.uint8)
