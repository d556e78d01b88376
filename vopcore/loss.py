"""The symmetric contrastive loss over the pairs of all workers."""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all workers. Each worker then computes the same loss of all rows, so the
    gradient of its own rows is already complete; it is multiplied by the number of workers because
    DistributedDataParallel divides by it.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, counts: list[int]) -> Tensor:
        rank = distributed.get_rank()
        ctx.start, ctx.stop, ctx.workers = sum(counts[:rank]), sum(counts[: rank + 1]), len(counts)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.start : ctx.stop] * ctx.workers, None


def gather(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows of all workers in the order of their ranks, with gradients; the arguments if there is one.

    Workers may hold different numbers of rows, but all tensors of one worker the same.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return tensors
    count = torch.tensor([len(tensors[0])], device=tensors[0].device)
    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    counts = [int(c) for c in counts]
    return tuple(
        _Gather.apply(tensor.byte(), counts).bool()
        if tensor.dtype == torch.bool
        else _Gather.apply(tensor.contiguous(), counts)
        for tensor in tensors
    )


def contrastive(text: Tensor, video: Tensor, mask: Tensor | None, retriever: nn.Module) -> Tensor:
    """0.5 [CE(S) + CE(S^T)] with S = exp(logit_scale) * similarity, over the pairs of all workers; a scalar.

    text [N, D] and video [N, F, D] with mask Bool [N, F] are this worker's part, caption i belonging to
    video i. Under DistributedDataParallel the gradients are those of one worker with the whole batch, for
    any number of workers and uneven parts. `retriever` is the Retriever itself, not its DDP wrapper.
    """
    if mask is None:
        text, video = gather(text, video)
    else:
        text, video, mask = gather(text, video, mask)
    logits = retriever.clip.logit_scale.float().exp() * retriever.similarity(text, video, mask)
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
