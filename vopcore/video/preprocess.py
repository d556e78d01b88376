"""A decoded picture as CLIP wants it: upright, short side resized, centre cropped, still uint8.

The arithmetic of open_clip's evaluation transform (bicubic resize of the short side with antialiasing,
centre crop), on uint8 tensors instead of PIL images: within 2/255 of it, 0.002/255 in the mean. swscale's
own resize differs by up to 117/255.
"""

import numpy as np
import torch
import torch.nn.functional as F
from av import VideoFrame
from av.video.reformatter import VideoReformatter


def preprocess(frame: VideoFrame, size: int, reformatter: VideoReformatter) -> np.ndarray:
    """The picture as uint8 [size, size, 3] RGB. One `reformatter` is shared by a video's frames: building
    one costs as much as the conversion. The sample aspect ratio is ignored, as the field does."""
    rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return crop(resize(upright(rgb, frame.rotation), size), size)


def upright(rgb: np.ndarray, rotation: float) -> np.ndarray:
    """The picture [H, W, 3] turned by the container's display matrix (`rotation` in degrees, counter-
    clockwise).
    """
    return np.rot90(rgb, round(rotation / 90))


def resize(rgb: np.ndarray, size: int) -> np.ndarray:
    """The picture with its short side `size` pixels long; the long side is rounded down, as torchvision
    does.
    """
    height, width = rgb.shape[:2]
    short = min(height, width)
    if short == size:
        return rgb
    target = (int(size * height / short), int(size * width / short))
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None]  # a channels-last view
    resized = F.interpolate(pixels, size=target, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def crop(rgb: np.ndarray, size: int) -> np.ndarray:
    """The middle `size` x `size` pixels; offsets rounded half to even, as torchvision does."""
    top, left = (round((side - size) / 2) for side in rgb.shape[:2])
    return rgb[top : top + size, left : left + size]
