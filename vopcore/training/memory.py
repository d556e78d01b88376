"""How much memory a step will need, before the first one; how a batch that will not fit is split.

Two small batches of random pixels go through a forward and a backward pass, while every tensor that is
allocated on the way is counted. What a step holds grows by the same amount with every video, so two
measurements tell any batch's, for every method, precision and setting.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vopcore.retriever import Retriever
from vopcore.training.batches import Batch
from vopcore.training.gradients import Loss, backward
from vopcore.training.loss import contrastive

SMALL, LARGE = 2, 4  # videos of the two measurements
USABLE = 0.92  # share of a GPU's memory; the rest is the libraries' workspace and fragments


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a training step holds at its peak: `fixed`, and `per_video` with activations."""

    fixed: int
    per_video: int

    def bytes(self, videos: int) -> int:
        """At the peak, with the activations of so many videos."""
        return self.fixed + videos * self.per_video

    def micro_batch(self, videos: int, available: int) -> int | None:
        """Videos to hold activations of at once so that `videos` fit into `available` bytes: None for all.

        As even parts as possible. Raises MemoryError if not even one video fits.
        """
        if self.bytes(videos) <= available:
            return None
        most = (available - self.fixed) // self.per_video
        if most < 1:
            raise MemoryError(
                f"one video needs {self.bytes(1) / 2**30:.1f} GiB, there are"
                f" {available / 2**30:.1f} GiB: {WAYS_OUT}"
            )
        num_parts = -(-videos // most)
        return -(-videos // num_parts)


WAYS_OUT = (
    "set train.micro_batch (activations of fewer videos at once), train.precision=bf16 or"
    " train.grad_checkpointing=true"
)


def estimate(retriever: Retriever, like: Batch, loss_of: Loss = contrastive) -> MemoryEstimate:
    """Measure on the retriever's device; leaves its gradients empty.

    like: a batch of which the first video, its frames, length of text and crop are what every video is.
    """
    peaks = [_peak(retriever, _repeated(like, videos), loss_of) for videos in (SMALL, LARGE)]
    per_video = max(1, (peaks[1] - peaks[0]) // (LARGE - SMALL))

    weights = sum(tensor.nbytes for tensor in (*retriever.parameters(), *retriever.buffers()))
    tuned = sum(parameter.nbytes for parameter in retriever.parameters() if parameter.requires_grad)
    gradients_and_moments = 3 * tuned  # AdamW's two moments
    fixed = weights + gradients_and_moments + peaks[0] - SMALL * per_video

    # The next batch is on its way to the GPU while this one is computed.
    inputs = [like.frames, like.mask, like.tokens]
    read_ahead = 2 * sum(tensor[0].nbytes for tensor in inputs)
    return MemoryEstimate(max(0, fixed), per_video + read_ahead)


def _peak(retriever: Retriever, batch: Batch, loss_of: Loss) -> int:
    """The most bytes that a forward and a backward pass hold at once, gradients of parameters left out.

    For few videos those would hide the activations, of which there are many more in a real batch.
    """
    allocated = AllocatedBytes(retriever.mean.device)
    hooks = []
    for parameter in retriever.parameters():
        if parameter.requires_grad:
            hooks.append(parameter.register_post_accumulate_grad_hook(allocated.leave_out_gradient))
    try:
        with allocated:
            backward(retriever, retriever, batch, None, (0, 0), loss_of)
    finally:
        for hook in hooks:
            hook.remove()
        retriever.zero_grad(set_to_none=True)
    return allocated.peak


def _repeated(like: Batch, videos: int) -> Batch:
    """The first video of a batch, so many times."""

    def rows(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor[:1].expand(videos, *tensor.shape[1:])

    names = [like.videos[0]] * videos
    captions = like.captions[:1] * videos
    return Batch(
        names, rows(like.frames), rows(like.mask), rows(like.tokens), rows(like.crops), captions, like.full
    )


class AllocatedBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made on a device inside the block: `now`, and at most (`peak`)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._type = device.type
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one operation and count what it returns."""
        out = func(*args, **(kwargs or {}))
        given = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == self._type:
                self._add(tensor, given)
        return out

    def _add(self, tensor: Tensor, given: set[int]) -> None:
        key = _storage(tensor)
        if key in self._sizes or key in given:  # a view, or written in place
            return
        storage = tensor.untyped_storage()
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def leave_out_gradient(self, parameter: Tensor) -> None:
        """No longer count the gradient that a parameter has got."""
        assert parameter.grad is not None
        self._remove(_storage(parameter.grad))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
