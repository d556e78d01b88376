"""Videos of one batch side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stack(looks: Sequence[np.ndarray], frames: int) -> tuple[np.ndarray, Tensor]:
    """looks: [f, ...], 0 < f <= frames -> [B, F, ...], zeros for frames a video has not, and bool [B, F] of
    those it has."""
    shape = (len(looks), frames, *looks[0].shape[1:])
    stacked = np.zeros(shape, looks[0].dtype)
    mask = np.zeros((len(looks), frames), bool)
    for row, look in enumerate(looks):
        num_frames = len(look)
        stacked[row, :num_frames] = look
        mask[row, :num_frames] = True
    return stacked, torch.from_numpy(mask)
