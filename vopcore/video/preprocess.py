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
        # Pictures that wait to be resized together, cropped to what the resize reads; reused, as fresh
        # memory costs as much as filling it.
        self._shape: tuple[int, int] = (0, 0)
        self._batch = np.empty((0, 0, 0, 3), np.uint8)
        self._waiting_keys: list[int] = []

    def add(self, key: int, frame: VideoFrame) -> None:
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        picture = upright(rgb, display_matrix(frame))

        # Only pictures of one shape can be resized together.
        height, width = picture.shape[:2]
        if (height, width) != self._shape:
            self._resize_waiting()
            self._start_batch(height, width)

        bottom, right = self._batch.shape[1:3]
        self._batch[len(self._waiting_keys)] = picture[:bottom, :right]
        self._waiting_keys.append(key)
        if len(self._waiting_keys) == len(self._batch):
            self._resize_waiting()

    def finish(self) -> dict[int, list[np.ndarray]]:
        self._resize_waiting()
        return self._squares

    def _start_batch(self, height: int, width: int) -> None:
        """Room for pictures of height x width, or what any geometry reads of them."""
        regions = [read_region(height, width, geometry) for geometry in self._geometries]
        bottom = max(region[0] for region in regions)
        right = max(region[1] for region in regions)
        num_pictures = max(BATCH_BYTES // (bottom * right * 3), 1)
        self._batch = np.empty((num_pictures, bottom, right, 3), np.uint8)
        self._shape = (height, width)

    def _resize_waiting(self) -> None:
        if not self._waiting_keys:
            return
        pictures = self._batch[: len(self._waiting_keys)]
        batches = [preprocess(pictures, self._shape, geometry) for geometry in self._geometries]
        for index, key in enumerate(self._waiting_keys):
            self._squares[key] = [batch[index] for batch in batches]
        self._waiting_keys = []


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
    from_x_to_x = a
    from_y_to_y = d
    is_sideways = abs(c) > abs(a)
    if is_sideways:
        rgb = rgb.transpose(1, 0, 2)
        from_x_to_x = c
        from_y_to_y = b

    if from_x_to_x < 0:
        rgb = rgb[:, ::-1]
    if from_y_to_y < 0:
        rgb = rgb[::-1]
    return rgb


def preprocess(pictures: np.ndarray, shape: tuple[int, int], geometry: Geometry) -> np.ndarray:
    """Pictures of one shape, uint8 [N, h, w, 3] -> uint8 [N, size, size, 3], in memory of their own.

    `shape` is the pictures' height and width; of them, at least what `read_region` says must be given.
    """
    size = geometry.size
    height, width = shape
    new_height, new_width = resized_shape(height, width, geometry)
    top, left = crop_offset(height, width, geometry)
    if (new_height, new_width) == shape:
        return pictures[:, top : top + size, left : left + size].copy()

    bottom, right = read_region(height, width, geometry)
    kept = np.ascontiguousarray(pictures[:, :bottom, :right])
    channels_last = torch.from_numpy(kept).permute(0, 3, 1, 2)

    # The factors are those of the whole picture, not of what is given of it.
    kernel = KERNELS[geometry.interpolation]
    vertical_factor = new_height / height
    horizontal_factor = new_width / width
    resized = kernel(channels_last, [top + size, left + size], False, vertical_factor, horizontal_factor)

    middle = resized[:, :, top:, left:]
    return middle.permute(0, 2, 3, 1).contiguous().numpy()


def crop_offset(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of the resized picture before its middle; rounded half to even, as torchvision
    does.
    """
    new_height, new_width = resized_shape(height, width, geometry)
    top = round((new_height - geometry.size) / 2)
    left = round((new_width - geometry.size) / 2)
    return top, left


def read_region(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """How many rows and columns of a picture its square is made of, from the top left.

    What lies below and to the right is cut off before the resize, where it costs time. What lies above and
    to the left stays: the filter's phase is counted from there.
    """
    new_height, new_width = resized_shape(height, width, geometry)
    top, left = crop_offset(height, width, geometry)
    radius = KERNEL_RADIUS[geometry.interpolation]
    rows = _reach(top + geometry.size, height / new_height, radius)
    columns = _reach(left + geometry.size, width / new_width, radius)
    return min(rows, height), min(columns, width)


def resized_shape(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """Height and width after the resize; the long side is rounded down, as torchvision does."""
    if geometry.resize == "squash":
        return geometry.size, geometry.size
    short = min(height, width)
    new_height = int(geometry.size * height / short)
    new_width = int(geometry.size * width / short)
    return new_height, new_width


def _reach(num_resized: int, scale: float, radius: int) -> int:
    """How many stored pixels the first `num_resized` resized ones are made of, one spare for rounding."""
    support = radius * max(scale, 1.0)
    return math.ceil(num_resized * scale + support) + 1
