"""Loss and gradients of one batch: in one pass, or in two that hold the activations of few videos at a time.

The two passes are GradCache's (Gao et al. 2021, https://arxiv.org/abs/2101.06983, section 3.2): the features
of all parts without gradients, the loss and its gradients by the features, then each part once more, to
carry those on to the parameters. The batch stays one batch: every caption meets every video of it.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vopcore.retriever import Retriever
from vopcore.training import augment
from vopcore.training.batches import Batch
from vopcore.training.loss import contrastive, is_shared

Loss = Callable[[Tensor, Tensor, Tensor | None, Retriever], Tensor]
"""text [N, D], video [N, F, D], mask Bool [N, F] or None, and the retriever -> a scalar"""


def backward(
    model: nn.Module,
    retriever: Retriever,
    batch: Batch,
    micro_batch: int | None,
    seed: Sequence[int],
    loss_of: Loss = contrastive,
) -> Tensor:
    """Add the gradients of the global batch's loss to those of the tuned parameters; returns the loss.

    model: the retriever or its DistributedDataParallel wrapper. micro_batch: videos with activations at the
    same time, on every worker; None is all, in one pass. seed: of what drops out, a number for the run and
    one for the step; both passes drop the same.
    """
    mask = batch.mask if is_shared() else batch.real_frames()  # workers gather the masks, so each has one
    if mask is not None:
        mask = mask.to(retriever.mean.device, non_blocking=True)
    loss_of = partial(loss_of, mask=mask, retriever=retriever)

    # Workers meet in the same order only if all take as many passes, whatever the size of their part.
    fits = micro_batch is None or (not is_shared() and micro_batch >= len(batch.videos))
    if fits:
        text, video = embed(model, batch, [*seed, 0])
        loss = loss_of(text, video)
        loss.backward()
        return loss.detach()
    return _in_two_passes(model, retriever, batch.parts(micro_batch), seed, loss_of)


def _in_two_passes(
    model: nn.Module,
    retriever: Retriever,
    parts: list[Batch],
    seed: Sequence[int],
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    # First pass: features of all parts, no activations.
    texts, videos = [], []
    with torch.no_grad():
        for number, part in enumerate(parts):
            text, video = embed(retriever, part, [*seed, number])
            texts.append(text)
            videos.append(video)
    text = torch.cat(texts).requires_grad_()
    video = torch.cat(videos).requires_grad_()

    # The loss, and its gradients by the features and by the scale, which the towers do not see.
    loss = loss_of(text, video)
    scales = [
        p for p in (retriever.clip.logit_scale, bias_of(retriever)) if p is not None and p.requires_grad
    ]
    by_text, by_video, *by_scales = torch.autograd.grad(loss, [text, video, *scales])

    # Second pass: each part again, to carry the gradients of its features on to the parameters.
    sizes = [len(part.videos) for part in parts]
    rows = zip(parts, by_text.split(sizes), by_video.split(sizes), strict=True)
    for number, (part, by_part_text, by_part_video) in enumerate(rows):
        is_last = number == len(parts) - 1
        waits = isinstance(model, DistributedDataParallel) and not is_last
        with model.no_sync() if waits else nullcontext():
            text, video = embed(model, part, [*seed, number])
            roots = [(text, by_part_text), (video, by_part_video)]
            if is_last:  # the scale's gradient is complete: it must be added once
                roots += zip(scales, by_scales, strict=True)
            roots = [(tensor, gradient) for tensor, gradient in roots if tensor.requires_grad]
            tensors = [tensor for tensor, _ in roots]
            gradients = [gradient for _, gradient in roots]
            torch.autograd.backward(tensors, gradients)
    return loss.detach()


def bias_of(retriever: Retriever) -> Tensor | None:
    """What a sigmoid loss adds to all logits; only models trained with one have it."""
    return getattr(retriever.clip, "logit_bias", None)


def embed(model: nn.Module, part: Batch, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Text [N, D] and video [N, F, D] features of a part, on the model's device."""
    device = next(model.parameters()).device
    torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))

    frames = part.frames.to(device, non_blocking=True)
    if part.crops is not None:
        frames = augment.crop(frames, part.crops.to(device, non_blocking=True))
    mask = part.real_frames()
    if mask is not None:
        mask = mask.to(device, non_blocking=True)
    tokens = part.tokens.to(device, non_blocking=True)
    return model(frames, mask, tokens)
