"""A decoded picture as CLIP wants it: upright, resized, centre cropped, still uint8.

The arithmetic of open_clip's evaluation transform (resize with antialiasing, centre crop), on uint8
tensors instead of PIL images: within 2/255 of it, 0.002/255 in the mean. swscale's own resize differs by
up to 117/255.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from av import VideoFrame
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

Resize = Literal["shortest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

# Pictures are resized side by side until their pixels reach this: one call for many small pictures costs
# two thirds of a call for each, large ones gain nothing.
BATCH_BYTES = 4 * 2**20

KERNELS = {
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
}
KERNEL_RADIUS = {"bicubic": 2, "bilinear": 1}  # in pixels of the smaller of the two pictures


class Geometry(NamedTuple):
    """How pictures become squares of `size` pixels.

    `resize` "shortest" makes the short side `size` and crops the middle; "squash" ignores the shape.
    """

    size: int
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"


class Preprocessor:
    """Turns a video's decoded pictures into squares, each once for every geometry.

    `add` takes pictures in any order under a key of the caller's; `finish` gives, for each key, one uint8
    [size, size, 3] RGB picture per geometry. The sample aspect ratio is ignored, as the field does.
    """

    def __init__(self, geometries: list[Geometry]) -> None:
        self._geometries = geometries
        # Building a reformatter costs as much as a conversion: one serves the whole video.
        self._reformatter = VideoReformatter()
        self._squares: dict[int, list[np.ndarray]] = {}
        self._waiting_keys: list[int] = []
        self._waiting_pictures: list[np.ndarray] = []

    def __contains__(self, key: int) -> bool:
        return key in self._squares or key in self._waiting_keys

    def add(self, key: int, frame: VideoFrame) -> None:
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        picture = upright(rgb, display_matrix(frame))

        # Only pictures of one shape can be resized together.
        if self._waiting_pictures and self._waiting_pictures[0].shape != picture.shape:
            self._resize_waiting()

        self._waiting_keys.append(key)
        self._waiting_pictures.append(picture)
        if len(self._waiting_pictures) * picture.nbytes >= BATCH_BYTES:
            self._resize_waiting()

    def finish(self) -> dict[int, list[np.ndarray]]:
        self._resize_waiting()
        return self._squares

    def _resize_waiting(self) -> None:
        if not self._waiting_keys:
            return
        pictures = np.stack(self._waiting_pictures)
        batches = [preprocess(pictures, geometry) for geometry in self._geometries]
        for index, key in enumerate(self._waiting_keys):
            self._squares[key] = [batch[index] for batch in batches]
        self._waiting_keys = []
        self._waiting_pictures = []


def display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """The container's int32 [3, 3] display matrix, None where there is none."""
    side_data = frame.side_data.get(Type.DISPLAYMATRIX)
    if side_data is None:
        return None
    return np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)


def upright(rgb: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """The picture [H, W, 3] turned and mirrored by its display matrix, to the nearest right angle.

    The matrix takes a stored point (x, y), y downwards, to (a x + c y, b x + d y).
    """
    if matrix is None:
        return rgb
    (a, b), (c, d) = matrix[:2, :2].tolist()
    sideways = abs(c) > abs(a)
    if sideways:
        rgb = rgb.transpose(1, 0, 2)

    mirrored_horizontally = c < 0 if sideways else a < 0
    if mirrored_horizontally:
        rgb = rgb[:, ::-1]
    mirrored_vertically = b < 0 if sideways else d < 0
    if mirrored_vertically:
        rgb = rgb[::-1]
    return rgb


def preprocess(pictures: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Pictures of one shape, uint8 [N, H, W, 3] -> uint8 [N, size, size, 3]."""
    size = geometry.size
    height, width = pictures.shape[1:3]
    new_height, new_width = resized_shape(height, width, geometry)

    # The middle of the resized picture; offsets are rounded half to even, as torchvision does.
    top = round((new_height - size) / 2)
    left = round((new_width - size) / 2)
    if (new_height, new_width) == (height, width):
        return pictures[:, top : top + size, left : left + size]

    # What lies below and to the right of the crop is cut off before the resize, where it costs time. What
    # lies above and to the left stays: the filter's phase is counted from there.
    row_scale = height / new_height
    column_scale = width / new_width
    radius = KERNEL_RADIUS[geometry.interpolation]
    bottom = min(height, _reach(top + size, row_scale, radius))
    right = min(width, _reach(left + size, column_scale, radius))
    kept = np.ascontiguousarray(pictures[:, :bottom, :right])

    channels_last = torch.from_numpy(kept).permute(0, 3, 1, 2)
    kernel = KERNELS[geometry.interpolation]
    resized = kernel(channels_last, [top + size, left + size], False, 1 / row_scale, 1 / column_scale)
    return resized[:, :, top:, left:].permute(0, 2, 3, 1).contiguous().numpy()


def resized_shape(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """Height and width after the resize; the long side is rounded down, as torchvision does."""
    if geometry.resize == "squash":
        return geometry.size, geometry.size
    short = min(height, width)
    return int(geometry.size * height / short), int(geometry.size * width / short)


def _reach(num_resized: int, scale: float, radius: int) -> int:
    """How many stored pixels the first `num_resized` resized ones are made of, one spare for rounding."""
    return math.ceil(num_resized * scale + radius * max(scale, 1.0)) + 1
