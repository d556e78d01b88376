"""The symmetric contrastive loss over the pairs of all workers."""

import torch
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

BLOCK = 2**26  # (text, frame) pairs of a block of logits: a few times 256 MiB


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
    Memory is that of BLOCK logits, for any number of pairs: each block is computed again for its gradients.
    """
    if mask is None:
        text, video = gather(text, video)
    else:
        text, video, mask = gather(text, video, mask)
    rows = max(1, BLOCK // video[..., 0].numel())
    blocks = [slice(start, start + rows) for start in range(0, len(text), rows)]

    def logits(rows: slice, columns: slice) -> Tensor:
        real = None if mask is None else mask[columns]
        scale = retriever.clip.logit_scale.float().exp()
        return scale * retriever.similarity(text[rows], video[columns], real)

    with torch.no_grad():  # what is near zero is exact: logits of right pairs, from which the others are told
        right = torch.cat([logits(block, block).diagonal() for block in blocks])

    def part(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """logsumexp of the rows, and of the columns as far as these rows go; the right logits."""
        block = logits(rows, slice(None))
        by_row, by_column = block - right[rows].unsqueeze(1), block - right
        return by_row.logsumexp(1), by_column.logsumexp(0), by_row.diagonal(rows.start)

    parts = [checkpoint(part, block, use_reentrant=False, preserve_rng_state=False) for block in blocks]
    by_row, by_column, pairs = zip(*parts, strict=True)
    total = torch.cat(by_row).mean() + torch.stack(by_column).logsumexp(0).mean()
    return total / 2 - torch.cat(pairs).mean()
