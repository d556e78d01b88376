"""Loss and gradients of one batch: in one pass, or in two that hold the activations of few videos at a time.

The two passes are GradCache's (Gao et al. 2021, https://arxiv.org/abs/2101.06983, section 3.2): the features
of all micro-batches without gradients, the loss and its gradients by the features, then each micro-batch once
more, to carry those on to the parameters. The batch stays one batch: every caption meets every video of it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

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
    # Workers gather their masks, so each must have one, even where all its frames are real.
    mask = batch.mask if is_shared() else batch.real_frames()
    if mask is not None:
        mask = mask.to(retriever.mean.device, non_blocking=True)

    def loss_of_features(text: Tensor, video: Tensor) -> Tensor:
        return loss_of(text, video, mask, retriever)

    # Workers meet in the same order only if all take as many passes, whatever the size of their share.
    if micro_batch is not None and not is_shared() and micro_batch >= len(batch.videos):
        micro_batch = None

    if micro_batch is None:
        text, video = embed(model, batch, [*seed, 0])
        loss = loss_of_features(text, video)
        loss.backward()
        return loss.detach()

    micro_batches = batch.micro_batches(micro_batch)
    return _in_two_passes(
        model,
        retriever,
        micro_batches,
        seed,
        loss_of_features,
    )


def _in_two_passes(
    model: nn.Module,
    retriever: Retriever,
    micro_batches: list[Batch],
    seed: Sequence[int],
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    # First pass: features of all micro-batches, no activations.
    texts = []
    videos = []
    with torch.no_grad():
        for number, micro_batch in enumerate(micro_batches):
            text, video = embed(
                retriever,
                micro_batch,
                [*seed, number],
            )
            texts.append(text)
            videos.append(video)

    text = torch.cat(texts).requires_grad_()
    video = torch.cat(videos).requires_grad_()

    # The loss, and its gradients by the features and by the scale, which the towers do not see.
    loss = loss_of(text, video)
    scales = _tuned_scales(retriever)
    inputs = [text, video, *scales]
    text_gradient, video_gradient, *scale_gradients = torch.autograd.grad(loss, inputs)

    # Second pass: each micro-batch again, to carry the gradients of its features on to the parameters.
    sizes = [len(micro_batch.videos) for micro_batch in micro_batches]
    text_gradients = text_gradient.split(sizes)
    video_gradients = video_gradient.split(sizes)
    last = len(micro_batches) - 1

    for number, micro_batch in enumerate(micro_batches):
        # DDP averages over the workers once, in the last backward pass.
        is_last = number == last
        synchronization: AbstractContextManager[None] = nullcontext()
        if isinstance(model, DistributedDataParallel) and not is_last:
            synchronization = model.no_sync()

        with synchronization:
            text, video = embed(model, micro_batch, [*seed, number])
            features = [text, video]
            gradients = [text_gradients[number], video_gradients[number]]

            # The scale's gradient is already complete, so it must be added only once.
            if is_last:
                features += scales
                gradients += scale_gradients
            _carry_on(features, gradients)

    return loss.detach()


def _carry_on(features: list[Tensor], gradients: list[Tensor]) -> None:
    """Back-propagate gradients that are already known, from features to parameters."""
    roots = []
    root_gradients = []
    for feature, gradient in zip(features, gradients, strict=True):
        # A tower without tuned parameters has no graph.
        if feature.requires_grad:
            roots.append(feature)
            root_gradients.append(gradient)

    torch.autograd.backward(roots, root_gradients)


def _tuned_scales(retriever: Retriever) -> list[Tensor]:
    """The scalars of the loss that are tuned: they stand outside the towers."""
    scales = []
    for scale in (retriever.clip.logit_scale, bias_of(retriever)):
        if scale is not None and scale.requires_grad:
            scales.append(scale)
    return scales


def bias_of(retriever: Retriever) -> Tensor | None:
    """What a sigmoid loss adds to all logits; only models trained with one have it."""
    return getattr(retriever.clip, "logit_bias", None)


def embed(
    model: nn.Module,
    batch: Batch,
    seed: list[int],
) -> tuple[Tensor, Tensor]:
    """Text [N, D] and video [N, F, D] features of a batch, on the model's device."""
    device = next(model.parameters()).device

    # Dropout takes its noise from torch's own generator: both passes must see the same.
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))

    frames = batch.frames.to(device, non_blocking=True)
    if batch.crops is not None:
        crops = batch.crops.to(device, non_blocking=True)
        frames = augment.crop(frames, crops)

    mask = batch.real_frames()
    if mask is not None:
        mask = mask.to(device, non_blocking=True)

    tokens = batch.tokens.to(device, non_blocking=True)
    return model(frames, mask, tokens)
