"""Videos of one batch side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stack(looks: Sequence[np.ndarray], frames: int) -> tuple[np.ndarray, Tensor]:
    """looks: [f, ...], 0 < f <= frames -> [B, F, ...], zeros for frames a video has not, and bool [B, F] of
    those it has."""
    stacked = np.zeros((len(looks), frames, *looks[0].shape[1:]), looks[0].dtype)
    for row, look in zip(stacked, looks, strict=True):
        row[: len(look)] = look
    mask = np.arange(frames) < np.array([len(look) for look in looks])[:, None]
    return stacked, torch.from_numpy(mask)
