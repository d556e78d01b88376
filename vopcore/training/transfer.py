"""Batches on their way to the GPU: the next one is copied while the present one is computed."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from vopcore.clip import CLIP, text_length
from vopcore.training.batches import Batch

# Of text lengths: cuDNN's attention makes a plan for each shape, and few shapes are few plans.
MULTIPLE = 8


def on_device(
    batches: Iterable[Batch],
    clip: CLIP,
    device: torch.device,
) -> Iterator[Batch]:
    """Each batch on `device`, in order; on a CPU as it is.

    Copies run on a stream of their own, one batch ahead.
    """
    if device.type != "cuda":
        yield from batches
        return

    # A stream of their own lets copies run beside kernels.
    copies = torch.cuda.Stream(device)
    in_transit: deque[tuple[Batch, torch.cuda.Event]] = deque()
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = moved_to(batch, clip, device)
        copied = copies.record_event()
        in_transit.append((moved, copied))

        # The reader gets the batch before: this one arrives while that one is computed.
        if len(in_transit) > 1:
            yield _arrived(*in_transit.popleft())

    while in_transit:
        yield _arrived(*in_transit.popleft())


def moved_to(
    batch: Batch,
    clip: CLIP,
    device: torch.device,
) -> Batch:
    """The batch on a GPU, without waiting; what depends on its values is decided here, on the CPU's copy."""
    length = text_length(clip, batch.tokens, MULTIPLE)
    tokens = batch.tokens[:, :length]
    is_full = bool(batch.mask.all())

    crops = batch.crops
    if crops is not None:
        crops = crops.to(device, non_blocking=True)

    return replace(
        batch,
        frames=batch.frames.to(device, non_blocking=True),
        mask=batch.mask.to(device, non_blocking=True),
        tokens=tokens.to(device, non_blocking=True),
        crops=crops,
        full=is_full,
    )


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch for the current stream, which waits for its copies; the host does not."""
    stream = torch.cuda.current_stream(batch.frames.device)
    stream.wait_event(copied)

    # Memory of the copies' stream is not given away before this stream has read it.
    for tensor in (batch.frames, batch.mask, batch.tokens, batch.crops):
        if tensor is not None:
            tensor.record_stream(stream)
    return batch
