"""Loss and gradients of one batch: in one pass, or in two that hold the activations of few videos at a time.

The two passes are GradCache's (Gao et al. 2021, https://arxiv.org/abs/2101.06983, section 3.2): the features
of all parts without gradients, the loss and its gradients by the features, then each part once more, to
carry those on to the parameters. The batch stays one batch: every caption meets every video of it.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vopcore.retriever import Retriever
from vopcore.training import augment
from vopcore.training.batches import Batch
from vopcore.training.loss import contrastive


def backward(
    model: nn.Module, retriever: Retriever, batch: Batch, micro_batch: int | None, seed: Sequence[int]
) -> Tensor:
    """Add the gradients of the global batch's loss to those of the tuned parameters; returns the loss.

    model: the retriever or its DistributedDataParallel wrapper. micro_batch: videos with activations at the
    same time, on every worker; None is all, in one pass. seed: of what drops out, a number for the run and
    one for the step; both passes drop the same.
    """
    mask = batch.mask.to(retriever.mean.device, non_blocking=True)
    if micro_batch is None:
        loss = contrastive(*embed(model, batch, [*seed, 0]), mask, retriever)
        loss.backward()
        return loss.detach()
    parts = batch.parts(micro_batch)
    with torch.no_grad():
        features = [embed(retriever, part, [*seed, i]) for i, part in enumerate(parts)]
    text, video = (torch.cat(rows).requires_grad_() for rows in zip(*features, strict=True))
    loss = contrastive(text, video, mask, retriever)
    scale = [p for p in [retriever.clip.logit_scale] if p.requires_grad]
    by_text, by_video, *by_scale = torch.autograd.grad(loss, [text, video, *scale])
    sizes = [len(part.videos) for part in parts]
    gradients = zip(by_text.split(sizes), by_video.split(sizes), strict=True)
    for i, (part, given) in enumerate(zip(parts, gradients, strict=True)):
        last = i == len(parts) - 1
        waits = isinstance(model, DistributedDataParallel) and not last
        with model.no_sync() if waits else nullcontext():
            roots = list(zip(embed(model, part, [*seed, i]), given, strict=True))
            roots += zip(scale, by_scale, strict=True) if last else []
            torch.autograd.backward(*zip(*(root for root in roots if root[0].requires_grad), strict=True))
    return loss.detach()


def embed(model: nn.Module, part: Batch, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Text [N, D] and video [N, F, D] features of a part, on the model's device."""
    device = next(model.parameters()).device
    torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
    frames = part.frames.to(device, non_blocking=True)
    if part.crops is not None:
        frames = augment.crop(frames, part.crops.to(device))
    mask = None if part.mask.all() else part.mask.to(device)  # attention without a mask is faster
    return model(frames, mask, part.tokens.to(device, non_blocking=True))
