"""The quickstart's pretraining: a small CLIP learns from stills what things are and where, never when.

Real runs start from a published CLIP instead; this one exists so that the whole path, frozen backbone
included, runs where nothing can be downloaded.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from vopcore.retriever import Retriever
from vopcore.training.loss import contrastive

# (rng, N) -> stills uint8 [N, S, S, 3], N captions
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, list[str]]]


def train_on_stills(
    clip: nn.Module,
    draw: Draw,
    tokenize: Callable[[list[str]], torch.Tensor],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> Iterator[float]:
    """Train all of `clip` in place for `steps` steps on freshly drawn stills, yielding the loss of each.

    AdamW, 5 % warm-up, cosine to zero, as CLIP itself was trained (Radford et al. 2021, section 2.5).
    """
    rng = np.random.default_rng(seed)
    retriever = Retriever(clip)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=lr, weight_decay=0.05)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    for _ in range(steps):
        images, captions = draw(rng, batch_size)
        frames = torch.from_numpy(images).permute(0, 3, 1, 2)[:, None]  # a still is a video of one frame
        text, video = retriever(frames, None, tokenize(captions))
        loss = contrastive(text, video, None, retriever)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()
