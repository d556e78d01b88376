"""How much memory a step will need, before the first one; how a batch that will not fit is split.

Two small batches of random pixels go through a forward and a backward pass, while every tensor that is
allocated on the way is counted. What a step holds grows by the same amount with every video, so two
measurements tell any batch's, for every method, precision and setting.
"""

import math
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

# Videos of the two measurements.
SMALL = 2
LARGE = 4

# Share of a GPU's memory; the rest is the libraries' workspace and fragments.
USABLE = 0.92

WAYS_OUT = (
    "set train.micro_batch (activations of fewer videos at once), train.precision=bf16 or"
    " train.grad_checkpointing=true"
)


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
            needed_gib = self.bytes(1) / 2**30
            available_gib = available / 2**30
            raise MemoryError(
                f"one video needs {needed_gib:.1f} GiB, there are {available_gib:.1f} GiB: {WAYS_OUT}"
            )

        # The fewest micro-batches that fit, and then all as large as each other.
        num_micro_batches = math.ceil(videos / most)
        return math.ceil(videos / num_micro_batches)


def estimate(
    retriever: Retriever,
    like: Batch,
    loss_of: Loss = contrastive,
) -> MemoryEstimate:
    """Measure on the retriever's device; leaves its gradients empty.

    like: a batch of which the first video, its frames, length of text and crop are what every video is.
    """
    # Two points of a line: what each video adds, and what is there without any.
    small_peak = _peak(retriever, _repeated(like, SMALL), loss_of)
    large_peak = _peak(retriever, _repeated(like, LARGE), loss_of)
    per_video = max(1, (large_peak - small_peak) // (LARGE - SMALL))
    without_videos = small_peak - SMALL * per_video

    weights = sum(buffer.nbytes for buffer in retriever.buffers())
    tuned = 0
    for parameter in retriever.parameters():
        weights += parameter.nbytes
        if parameter.requires_grad:
            tuned += parameter.nbytes

    # Each tuned number has a gradient, and two moments in AdamW.
    gradients_and_moments = 3 * tuned
    fixed = weights + gradients_and_moments + without_videos

    # The next batch is on its way to the GPU while this one is computed.
    inputs = [like.frames, like.mask, like.tokens]
    read_ahead = 2 * sum(tensor[0].nbytes for tensor in inputs)
    return MemoryEstimate(
        fixed=max(0, fixed),
        per_video=per_video + read_ahead,
    )


def _peak(
    retriever: Retriever,
    batch: Batch,
    loss_of: Loss,
) -> int:
    """The most bytes that a forward and a backward pass hold at once, gradients of parameters left out.

    For few videos those would hide the activations, of which there are many more in a real batch.
    """
    allocated = AllocatedBytes(retriever.mean.device)
    hooks = []
    for parameter in retriever.parameters():
        if parameter.requires_grad:
            hook = parameter.register_post_accumulate_grad_hook(allocated.leave_out_gradient)
            hooks.append(hook)

    try:
        with allocated:
            backward(
                retriever,
                retriever,
                batch,
                micro_batch=None,
                seed=(0, 0),
                loss_of=loss_of,
            )
    finally:
        for hook in hooks:
            hook.remove()
        retriever.zero_grad(set_to_none=True)
    return allocated.peak


def _repeated(like: Batch, videos: int) -> Batch:
    """The first video of a batch, so many times."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor[:1].expand(videos, *tensor.shape[1:])

    return Batch(
        videos=[like.videos[0]] * videos,
        frames=rows(like.frames),
        mask=rows(like.mask),
        tokens=rows(like.tokens),
        crops=None if like.crops is None else rows(like.crops),
        captions=like.captions[:1] * videos,
        full=like.full,
    )


class AllocatedBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made on a device inside the block: `now`, and at most (`peak`)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has not typed it
        self.now = 0
        self.peak = 0
        self._type = device.type
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one operation and count what it returns."""
        out = func(*args, **(kwargs or {}))

        input_storages = set()
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                input_storages.add(_storage(leaf))

        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == self._type:
                self._add(leaf, input_storages)
        return out

    def _add(self, tensor: Tensor, input_storages: set[int]) -> None:
        # A view, or written in place: no new memory.
        key = _storage(tensor)
        if key in self._sizes or key in input_storages:
            return

        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self._sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)

        # Storage is shared by views: it is free when the last of them is.
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def leave_out_gradient(self, parameter: Tensor) -> None:
        """No longer count the gradient that a parameter has got."""
        assert parameter.grad is not None
        self._remove(_storage(parameter.grad))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
