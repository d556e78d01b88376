"""Videos of one batch side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stack(looks: Sequence[np.ndarray], frames: int) -> tuple[np.ndarray, Tensor]:
    """One array of several videos' frames.

    looks: B arrays [f, ...] with 0 < f <= frames. Returns [B, F, ...], zeros for frames that a video has not,
    and a mask, bool [B, F], of those it has.
    """
    num_videos = len(looks)
    frame_shape = looks[0].shape[1:]
    shape = (num_videos, frames, *frame_shape)
    stacked = np.zeros(shape, looks[0].dtype)
    mask = np.zeros((num_videos, frames), bool)

    for row, look in enumerate(looks):
        num_frames = len(look)
        stacked[row, :num_frames] = look
        mask[row, :num_frames] = True

    return stacked, torch.from_numpy(mask)
