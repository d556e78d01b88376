"""Augmentation of videos on the device: a random resized crop and a flip, the same for all frames of a video.

X-Pool's, which VoP was built on: RandomResizedCrop(scale=(0.5, 1.0)), then RandomHorizontalFlip. Here it
crops the square that a shard holds, there the whole frame.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Area of a crop, as a share of the square.
AREA = (0.5, 1.0)

# Width over height.
ASPECT = (3 / 4, 4 / 3)

# As many tries as torchvision makes before the whole square is taken.
TRIES = 10


def draw_crop(rng: np.random.Generator, size: int) -> list[int]:
    """Top, left, height and width of a crop of a square of `size` pixels, and 1 to flip it or 0."""
    for _ in range(TRIES):
        # Aspects are drawn on a logarithmic scale: twice as wide is as likely as twice as high.
        area = size**2 * rng.uniform(*AREA)
        log_aspect = rng.uniform(*np.log(ASPECT))
        aspect = math.exp(log_aspect)
        height = round(math.sqrt(area / aspect))
        width = round(math.sqrt(area * aspect))

        if height <= size and width <= size:
            top = int(rng.integers(size - height + 1))
            left = int(rng.integers(size - width + 1))
            flip = int(rng.integers(2))
            return [top, left, height, width, flip]

    flip = int(rng.integers(2))
    return [0, 0, size, size, flip]


def crop(frames: Tensor, crops: Tensor) -> Tensor:
    """Cut a crop out of each video, resized to the whole square (bilinear).

    frames: uint8 [B, F, 3, S, S]. crops: int64 [B, 5], rows of `draw_crop`. Returns uint8 [B, F, 3, S, S].
    """
    size = frames.shape[-1]

    # One column per number of a crop, each [B, 1].
    columns = crops.float().T.unsqueeze(-1)
    top, left, height, width, flip = columns

    # Where the centre of each pixel of the result lies in the square.
    centres = torch.arange(size, device=frames.device) + 0.5
    mirrored = size - centres
    column = torch.where(flip > 0, mirrored, centres)
    inside_x = _clamp_to_crop(column * width / size, width)
    inside_y = _clamp_to_crop(centres * height / size, height)
    x = left + inside_x
    y = top + inside_y

    # grid_sample counts from -1 to 1.
    x = 2 * x / size - 1
    y = 2 * y / size - 1
    grid_x, grid_y = torch.broadcast_tensors(x.unsqueeze(1), y.unsqueeze(2))
    grid = torch.stack([grid_x, grid_y], dim=-1)  # [B, S, S, 2]

    # Shards hold channels last: put them first in the same pass that makes them floats.
    pixels = frames.to(torch.float32, memory_format=torch.contiguous_format)
    channels = pixels.flatten(
        1,
        2,
    )  # [B, F * 3, S, S]: all frames of a video are cut alike

    cropped = F.grid_sample(
        channels,
        grid,
        padding_mode="border",
        align_corners=False,
    )
    return cropped.round_().to(torch.uint8).view_as(frames)


def _clamp_to_crop(position: Tensor, length: Tensor) -> Tensor:
    """Keep positions [B, S] between the centres of a crop's outermost pixels.

    Bilinear interpolation would otherwise mix in neighbours from outside the crop.
    """
    after_first = position.clamp(min=0.5)
    return torch.minimum(after_first, length - 0.5)
