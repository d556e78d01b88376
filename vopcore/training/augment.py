"""Augmentation of videos on the device: a random resized crop and a flip, the same for all frames of a video.

X-Pool's, which VoP was built on: RandomResizedCrop(scale=(0.5, 1.0)), then RandomHorizontalFlip. Here it
crops the square that a shard holds, there the whole frame.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AREA, ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)  # of a crop: share of the square, width over height
TRIES = 10  # as torchvision, before the whole square is taken


def draw_crop(rng: np.random.Generator, size: int) -> list[int]:
    """Top, left, height and width of a crop of a square of `size` pixels, and 1 to flip it or 0."""
    for _ in range(TRIES):
        area, aspect = size**2 * rng.uniform(*AREA), math.exp(rng.uniform(*np.log(ASPECT)))
        height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if height <= size and width <= size:
            top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
            return [int(top), int(left), height, width, int(rng.integers(2))]
    return [0, 0, size, size, int(rng.integers(2))]


def crop(frames: Tensor, crops: Tensor) -> Tensor:
    """Cut `crops` Int [B, 5] out of frames UInt8 [B, F, 3, S, S], resized to the whole square (bilinear)."""
    size = frames.shape[-1]
    top, left, height, width, flip = crops.float().T.unsqueeze(-1)
    pixel = torch.arange(size, device=frames.device) + 0.5
    x = left + _within(torch.where(flip > 0, size - pixel, pixel) * width / size, width)
    y = top + _within(pixel * height / size, height)
    x, y = (2 * x / size - 1).unsqueeze(1), (2 * y / size - 1).unsqueeze(2)  # as grid_sample counts
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)  # [B, S, S, 2]
    cut = F.grid_sample(frames.flatten(1, 2).float(), grid, padding_mode="border", align_corners=False)
    return cut.round().to(torch.uint8).view_as(frames)


def _within(place: Tensor, length: Tensor) -> Tensor:
    """No neighbour from outside the crop: places [B, S] between the centres of its outermost pixels."""
    return torch.minimum(place.clamp(min=0.5), length - 0.5)
