"""The columns of a shard: what is kept of each video, beside its frames."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import simplejpeg

FORMAT = 1  # of shards; rises when an older program could not read them
Storage = Literal["raw", "jpeg"]

# OpenAI's way to resize, which a folder's name leaves out
PLAIN_PREPROCESSING = ("shortest", "bicubic")

# the most that was measured at quality 95; the least was 0.4
JPEG_BYTES_PER_PIXEL = 0.62

# above, JPEG is the default: at 224 pixels that is 33 frames
RAW_BYTES_PER_VIDEO = 5_000_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """All that is known of one video except its frames. `start`, `end`, `times`, `duration` in seconds.

    `status`: "ok", "damaged" (frames are there, `error` says what is not) or "failed" (no frames, `error`
    says why). `source_size` (bytes), `source_mtime` (seconds since 1970) and `source_sha256` are those of the
    video file when it was decoded; `content` is a hash of the stored frames. The two hashes stand in a
    shard's sidecar alone, and are None where a shard was written before there were any.
    """

    video: str
    status: str
    error: str | None = None
    start: float | None = None
    end: float | None = None
    num_frames: int = 0
    times: list[float] = field(default_factory=list)
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    duration: float | None = None
    codec: str | None = None
    source_size: int | None = None
    source_mtime: float | None = None
    source_sha256: str | None = None
    content: str | None = None


@dataclass(frozen=True)
class Layout:
    """How frames are stored: side length in pixels, as they are ("raw") or as JPEG of a quality."""

    size: int
    storage: Storage
    quality: int = 95

    def __post_init__(self) -> None:
        if self.storage not in ("raw", "jpeg"):
            raise ValueError(f"storage {self.storage!r} is unknown; it is raw or jpeg")

    def schema(self) -> pa.Schema:
        """A frame is a tensor [size, size, 3] or a JPEG; a video is a list of them, so a short one
        takes less room.
        """
        frame = pa.binary()
        if self.storage == "raw":
            frame = pa.fixed_shape_tensor(pa.uint8(), [self.size, self.size, 3])
        frames = ("frames", pa.list_(frame))
        return pa.schema([frames, *ENTRY_COLUMNS])

    def batch(self, entry: Entry, pixels: np.ndarray | None) -> pa.RecordBatch:
        """One video as a record batch; `pixels` uint8 [F, size, size, 3], None for a failed video."""
        frame_shape = (self.size, self.size, 3)
        frames = np.zeros((0, *frame_shape), np.uint8)
        if pixels is not None:
            frames = np.ascontiguousarray(pixels)
        assert frames.shape == (entry.num_frames, *frame_shape), (
            f"{entry.video}: {frames.shape}, {entry.num_frames} frames"
        )

        schema = self.schema()
        columns = [self._frames(frames)]
        for name in schema.names[1:]:
            value = getattr(entry, name)
            columns.append(pa.array([value], schema.field(name).type))
        return pa.record_batch(columns, schema=schema)

    def _frames(self, frames: np.ndarray) -> pa.ListArray:
        """One list that holds all frames."""
        if self.storage == "jpeg":
            jpegs = [encode_jpeg(frame, self.quality) for frame in frames]
            images = pa.array(jpegs, pa.binary())
        else:
            # Arrow takes the pixels as they lie in memory, without a copy
            frame_shape = frames.shape[1:]
            pixels = pa.array(frames.reshape(-1))
            flat = pa.FixedSizeListArray.from_arrays(pixels, int(np.prod(frame_shape)))
            kind = pa.fixed_shape_tensor(pa.uint8(), frame_shape)
            images = pa.ExtensionArray.from_storage(kind, flat)

        offsets = pa.array([0, len(frames)], pa.int32())
        return pa.ListArray.from_arrays(offsets, images)

    def pixels(
        self,
        batch: pa.RecordBatch,
        indices: list[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The frames of one video, uint8 [F, size, size, 3]; all of a raw one without a copy.

        out: where they are written to, frame by frame, with no copy in between.
        """
        images = batch.column("frames").values
        if self.storage == "raw":
            flat = images.storage.flatten().to_numpy()
            frames = flat.reshape(-1, self.size, self.size, 3)
            return pick(frames, indices, out)

        wanted = range(len(images)) if indices is None else indices
        if out is None:
            out = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        for row, index in zip(out, wanted, strict=True):
            # a view of the file, decoded to where the frame belongs: no copy in between
            data = np.frombuffer(images[index].as_buffer(), np.uint8)
            simplejpeg.decode_jpeg(data, "RGB", buffer=row)
        return out

    def bytes_per_frame(self) -> int:
        """Disk that one frame takes; for JPEG a generous estimate."""
        num_pixels = self.size * self.size
        if self.storage == "raw":
            return num_pixels * 3
        return int(num_pixels * JPEG_BYTES_PER_PIXEL)


ENTRY_COLUMNS = [
    ("video", pa.string()),
    ("status", pa.string()),
    ("error", pa.string()),
    ("start", pa.float64()),
    ("end", pa.float64()),
    ("num_frames", pa.int32()),
    ("times", pa.list_(pa.float64())),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("fps", pa.float64()),
    ("duration", pa.float64()),
    ("codec", pa.string()),
    ("source_size", pa.int64()),
    ("source_mtime", pa.float64()),
]


def default_storage(stored_frames: int, size: int) -> Storage:
    """By the size of one video, not of the data set: adding videos must not change the answer."""
    raw_bytes = stored_frames * size * size * 3
    return "raw" if raw_bytes <= RAW_BYTES_PER_VIDEO else "jpeg"


def encode_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """4:4:4, which at quality 95 keeps 42-44 dB; the usual 4:2:0 keeps 33-40."""
    return simplejpeg.encode_jpeg(
        rgb,
        quality=quality,
        colorspace="RGB",
        colorsubsampling="444",
    )


def pick(
    frames: np.ndarray,
    indices: list[int] | None,
    out: np.ndarray | None,
) -> np.ndarray:
    """The frames at `indices`, or all; written to `out` if there is one, each with one copy."""
    if out is None:
        return frames if indices is None else frames[indices]

    wanted = range(len(frames)) if indices is None else indices
    for row, index in zip(out, wanted, strict=True):
        row[...] = frames[index]
    return out


def check_format(sidecar: dict[str, Any], number: int) -> None:
    """Raises ValueError, one line, for a shard that another version wrote in another format."""
    written = sidecar.get("format", 1)  # the first ones did not say
    if written != FORMAT:
        raise ValueError(
            f"shard {number:06d} has format {written}, and this program reads {FORMAT}: read it with the"
            " version that wrote it, or decode anew into another folder (storage=...)"
        )


def folder_name(
    *,
    sampler: str,
    stored_frames: int,
    layout: Layout,
    resize: str,
    interpolation: str,
    decoder_version: int,
) -> str:
    """Names the shards of one way to sample, resize and store; whatever would change a pixel changes the
    name. OpenAI's preprocessing, as of most models, is not named.
    """
    # raw frames are the same at every quality
    quality = layout.quality if layout.storage == "jpeg" else None
    preprocessing = []
    if (resize, interpolation) != PLAIN_PREPROCESSING:
        preprocessing = [resize, interpolation]

    settings = [
        sampler,
        stored_frames,
        layout.size,
        layout.storage,
        quality,
        decoder_version,
        *preprocessing,
    ]
    text = json.dumps(settings)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]

    frames = f"{stored_frames}x{layout.size}"
    return "-".join([sampler, frames, *preprocessing, layout.storage, digest])
