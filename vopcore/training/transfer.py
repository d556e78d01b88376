"""Batches on their way to the GPU: the next one is copied while the present one is computed."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import nn

from vopcore.clip import text_length
from vopcore.training.batches import Batch

MULTIPLE = 8  # of text lengths: cuDNN's attention makes a plan for each shape, and few shapes are few plans


def on_device(batches: Iterable[Batch], clip: nn.Module, device: torch.device) -> Iterator[Batch]:
    """Each batch on `device`, in order; on a CPU as it is.

    Copies run on a stream of their own, one batch ahead.
    """
    if device.type != "cuda":
        yield from batches
        return

    copies = torch.cuda.Stream(device)
    on_the_way: deque[tuple[Batch, torch.cuda.Event]] = deque()
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = moved_to(batch, clip, device)
        on_the_way.append((moved, copies.record_event()))
        if len(on_the_way) > 1:
            yield _arrived(*on_the_way.popleft())
    while on_the_way:
        yield _arrived(*on_the_way.popleft())


def moved_to(batch: Batch, clip: nn.Module, device: torch.device) -> Batch:
    """The batch on a GPU, without waiting; what depends on its values is decided here, on the CPU's copy."""
    length = text_length(clip, batch.tokens, MULTIPLE)
    crops = batch.crops
    if crops is not None:
        crops = crops.to(device, non_blocking=True)
    return replace(
        batch,
        frames=batch.frames.to(device, non_blocking=True),
        mask=batch.mask.to(device, non_blocking=True),
        tokens=batch.tokens[:, :length].to(device, non_blocking=True),
        crops=crops,
        full=bool(batch.mask.all()),
    )


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch for the current stream, which waits for its copies; the host does not."""
    stream = torch.cuda.current_stream(batch.frames.device)
    stream.wait_event(copied)
    for tensor in (batch.frames, batch.mask, batch.tokens, batch.crops):
        if tensor is not None:
            tensor.record_stream(stream)  # its memory is not given away before this stream has read it
    return batch
