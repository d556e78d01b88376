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

# In pixels of the smaller of the two pictures.
KERNEL_RADIUS = {
    "bicubic": 2,
    "bilinear": 1,
}


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
        """Take one picture; it is resized when enough others of its shape are there."""
        rgb_frame = self._reformatter.reformat(
            frame,
            format="rgb24",
            threads=1,
        )
        rgb = rgb_frame.to_ndarray()
        matrix = display_matrix(frame)
        picture = upright(rgb, matrix)

        # Only pictures of one shape can be resized together.
        height, width = picture.shape[:2]
        if (height, width) != self._shape:
            self._resize_waiting()
            self._start_batch(height, width)

        bottom, right = self._batch.shape[1:3]
        num_waiting = len(self._waiting_keys)
        self._batch[num_waiting] = picture[:bottom, :right]
        self._waiting_keys.append(key)

        if len(self._waiting_keys) == len(self._batch):
            self._resize_waiting()

    def finish(self) -> dict[int, list[np.ndarray]]:
        """For each key, in the order of the geometries, uint8 [size, size, 3]."""
        self._resize_waiting()
        return self._squares

    def _start_batch(self, height: int, width: int) -> None:
        """Room for pictures of height x width, or what any geometry reads of them."""
        bottom = 0
        right = 0
        for geometry in self._geometries:
            rows, columns = read_region(height, width, geometry)
            bottom = max(bottom, rows)
            right = max(right, columns)

        bytes_per_picture = bottom * right * 3
        num_pictures = max(BATCH_BYTES // bytes_per_picture, 1)
        batch_shape = (num_pictures, bottom, right, 3)
        self._batch = np.empty(batch_shape, np.uint8)
        self._shape = (height, width)

    def _resize_waiting(self) -> None:
        if not self._waiting_keys:
            return

        num_waiting = len(self._waiting_keys)
        pictures = self._batch[:num_waiting]
        batches = [preprocess(pictures, self._shape, geometry) for geometry in self._geometries]

        for index, key in enumerate(self._waiting_keys):
            self._squares[key] = [batch[index] for batch in batches]

        self._waiting_keys = []


def display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """The container's int32 [3, 3] display matrix, None where there is none."""
    side_data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # typed by names alone
    if side_data is None:
        return None

    numbers = np.frombuffer(bytes(side_data), np.int32)
    return numbers.reshape(3, 3)


def upright(rgb: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """The picture [H, W, 3] turned and mirrored by its display matrix, to the nearest right angle.

    The matrix takes a stored point (x, y), y downwards, to (a x + c y, b x + d y).
    """
    if matrix is None:
        return rgb

    (a, b), (c, d) = matrix[:2, :2].tolist()
    from_x_to_x = a
    from_y_to_y = d

    # A quarter turn: x becomes y, and the other two numbers tell the mirroring.
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


def preprocess(
    pictures: np.ndarray,
    shape: tuple[int, int],
    geometry: Geometry,
) -> np.ndarray:
    """Pictures of one shape, uint8 [N, h, w, 3] -> uint8 [N, size, size, 3], in memory of their own.

    `shape` is the pictures' height and width; of them, at least what `read_region` says must be given.
    """
    size = geometry.size
    height, width = shape
    new_height, new_width = resized_shape(height, width, geometry)
    top, left = crop_offset(height, width, geometry)
    resized_bottom = top + size
    resized_right = left + size

    # Already as large as wanted: cropping is all.
    if (new_height, new_width) == shape:
        middle = pictures[:, top:resized_bottom, left:resized_right]
        return middle.copy()

    bottom, right = read_region(height, width, geometry)
    region = np.ascontiguousarray(pictures[:, :bottom, :right])
    channels_first = torch.from_numpy(region).permute(0, 3, 1, 2)

    # The factors are those of the whole picture, not of what is given of it.
    kernel = KERNELS[geometry.interpolation]
    resized = kernel(
        channels_first,
        [resized_bottom, resized_right],
        False,  # align_corners
        new_height / height,
        new_width / width,
    )

    middle = resized[:, :, top:, left:]
    channels_last = middle.permute(0, 2, 3, 1)
    return channels_last.contiguous().numpy()


def crop_offset(
    height: int,
    width: int,
    geometry: Geometry,
) -> tuple[int, int]:
    """Rows and columns of the resized picture before its middle.

    Rounded half to even, as torchvision does.
    """
    new_height, new_width = resized_shape(height, width, geometry)
    spare_rows = new_height - geometry.size
    spare_columns = new_width - geometry.size
    return round(spare_rows / 2), round(spare_columns / 2)


def read_region(
    height: int,
    width: int,
    geometry: Geometry,
) -> tuple[int, int]:
    """How many rows and columns of a picture its square is made of, from the top left.

    What lies below and to the right is cut off before the resize, where it costs time. What lies above and
    to the left stays: the filter's phase is counted from there.
    """
    new_height, new_width = resized_shape(height, width, geometry)
    top, left = crop_offset(height, width, geometry)
    radius = KERNEL_RADIUS[geometry.interpolation]

    resized_rows = top + geometry.size
    resized_columns = left + geometry.size
    rows = _reach(
        resized_rows,
        height / new_height,
        radius,
    )
    columns = _reach(
        resized_columns,
        width / new_width,
        radius,
    )
    return min(rows, height), min(columns, width)


def resized_shape(
    height: int,
    width: int,
    geometry: Geometry,
) -> tuple[int, int]:
    """Height and width after the resize; the long side is rounded down, as torchvision does."""
    if geometry.resize == "squash":
        return geometry.size, geometry.size

    short = min(height, width)
    new_height = int(geometry.size * height / short)
    new_width = int(geometry.size * width / short)
    return new_height, new_width


def _reach(
    num_resized: int,
    scale: float,
    radius: int,
) -> int:
    """How many stored pixels the first `num_resized` resized ones are made of, one spare for rounding."""
    support = radius * max(scale, 1.0)
    return math.ceil(num_resized * scale + support) + 1
