"""Augmentation of videos on the device: a random resized crop and a flip, the same for all frames of a video.

X-Pool's, which VoP was built on: RandomResizedCrop(scale=(0.5, 1.0)), then RandomHorizontalFlip. Here it
crops the square that a shard holds, there the whole frame.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AREA = (0.5, 1.0)  # of a crop, as a share of the square
ASPECT = (3 / 4, 4 / 3)  # width over height
TRIES = 10  # as torchvision, before the whole square is taken


def draw_crop(rng: np.random.Generator, size: int) -> list[int]:
    """Top, left, height and width of a crop of a square of `size` pixels, and 1 to flip it or 0."""
    for _ in range(TRIES):
        area = size**2 * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(*np.log(ASPECT)))
        height = round(math.sqrt(area / aspect))
        width = round(math.sqrt(area * aspect))

        if height <= size and width <= size:
            top = int(rng.integers(size - height + 1))
            left = int(rng.integers(size - width + 1))
            flip = int(rng.integers(2))
            return [top, left, height, width, flip]
    return [0, 0, size, size, int(rng.integers(2))]


def crop(frames: Tensor, crops: Tensor) -> Tensor:
    """Cut `crops` Int [B, 5] out of frames UInt8 [B, F, 3, S, S], resized to the whole square (bilinear)."""
    size = frames.shape[-1]
    top, left, height, width, flip = crops.float().T.unsqueeze(-1)  # each [B, 1]

    # Where the centre of each pixel of the result lies in the square.
    pixel = torch.arange(size, device=frames.device) + 0.5
    column = torch.where(flip > 0, size - pixel, pixel)
    x = left + _within(column * width / size, width)
    y = top + _within(pixel * height / size, height)

    # grid_sample counts from -1 to 1.
    x = (2 * x / size - 1).unsqueeze(1)
    y = (2 * y / size - 1).unsqueeze(2)
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)  # [B, S, S, 2]

    # Shards hold channels last: put them first in the same pass that makes them floats.
    pixels = frames.to(torch.float32, memory_format=torch.contiguous_format).flatten(1, 2)
    cut = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return cut.round_().to(torch.uint8).view_as(frames)


def _within(place: Tensor, length: Tensor) -> Tensor:
    """No neighbour from outside the crop: places [B, S] between the centres of its outermost pixels."""
    return torch.minimum(place.clamp(min=0.5), length - 0.5)
