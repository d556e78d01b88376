"""Losses over the pairs of all workers: softmax in both directions (CLIP), or a sigmoid per pair (SigLIP)."""

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

BLOCK = 2**26  # (text, frame) pairs of a block of logits: a few times 256 MiB

LossName = Literal["softmax", "sigmoid"]


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all workers. Each worker then computes the same loss of all rows, so the
    gradient of its own rows is already complete; it is multiplied by the number of workers because
    DistributedDataParallel divides by it.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, counts: list[int]) -> Tensor:
        rank = distributed.get_rank()
        ctx.start = sum(counts[:rank])
        ctx.stop = ctx.start + counts[rank]
        ctx.workers = len(counts)

        # Gathering wants equal shapes: shorter parts are padded, and cut again.
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
    if not is_shared():
        return tensors
    count = torch.tensor([len(tensors[0])], device=tensors[0].device)
    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    lengths = [int(count) for count in counts]

    gathered = []
    for tensor in tensors:
        if tensor.dtype == torch.bool:
            gathered.append(_Gather.apply(tensor.byte(), lengths).bool())
        else:
            gathered.append(_Gather.apply(tensor.contiguous(), lengths))
    return tuple(gathered)


def is_shared() -> bool:
    """Whether other workers hold a part of the batch."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def loss_of(
    name: LossName,
    text: Tensor,
    video: Tensor,
    mask: Tensor | None,
    retriever: nn.Module,
    identity: Tensor | None = None,
) -> Tensor:
    """The loss `name` over the pairs of all workers; a scalar.

    text [N, D] and video [N, F, D] with mask Bool [N, F] are this worker's part, caption i belonging to
    video i. Under DistributedDataParallel the gradients are those of one worker with the whole batch, for
    any number of workers and uneven parts. `retriever` is the Retriever itself, not its DDP wrapper.
    identity: Int64 [N, K], numbers of the caption and its video; a pair of two rows that share one of them
    is left out, being no negative. Memory is that of BLOCK logits, for any number of pairs: each block is
    computed again for its gradients.
    """
    optional = [tensor for tensor in (mask, identity) if tensor is not None]
    text, video, *optional = gather(text, video, *optional)
    if identity is not None:
        identity = optional.pop()
    if mask is not None:
        mask = optional.pop()

    def similarity(rows: slice, columns: slice) -> Tensor:
        """Of the texts `rows` and the videos `columns`; -inf where a pair is left out."""
        real = None if mask is None else mask[columns]
        cosines = retriever.compare(text[rows], video[columns], real)
        if identity is None:
            return cosines
        return cosines.masked_fill(_repeated(identity, rows, columns), float("-inf"))

    num_rows = max(1, BLOCK // video[..., 0].numel())
    is_small = len(text) * video[..., 0].numel() <= BLOCK // 64  # little to hold: nothing is recomputed
    blocks = [slice(start, min(start + num_rows, len(text))) for start in range(0, len(text), num_rows)]
    return LOSSES[name](similarity, blocks, retriever.clip, is_small)


def pair_numbers(videos: list[str], captions: list[str]) -> Tensor:
    """Int64 [N, 2] for each pair's caption and video, the same on every worker: `identity` of `loss_of`."""
    rows = []
    for video, caption in zip(videos, captions, strict=True):
        rows.append([_number(f"caption {caption}"), _number(f"video {video}")])
    return torch.tensor(rows)


def _number(name: str) -> int:
    """63 bits of a hash: two of a million names have the same once in 20 million."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def contrastive(
    text: Tensor, video: Tensor, mask: Tensor | None, retriever: nn.Module, identity: Tensor | None = None
) -> Tensor:
    """0.5 [CE(S) + CE(S^T)] with S = exp(logit_scale) * similarity; the arguments of `loss_of`."""
    return loss_of("softmax", text, video, mask, retriever, identity)


def _repeated(identity: Tensor, rows: slice, columns: slice) -> Tensor:
    """Bool [rows, columns]: pairs of two different rows of `identity` that share a number."""
    numbers = torch.arange(len(identity), device=identity.device)
    same = (identity[rows, None] == identity[None, columns]).any(dim=-1)
    return same & (numbers[rows, None] != numbers[None, columns])


Similarity = Callable[[slice, slice], Tensor]


def _softmax(similarity: Similarity, blocks: list[slice], clip: nn.Module, is_small: bool) -> Tensor:
    """Cross-entropy of the rows and of the columns, halved.

    The logit of the right pair is subtracted first: small differences keep their precision.
    """

    def logits(rows: slice, columns: slice) -> Tensor:
        return clip.logit_scale.float().exp() * similarity(rows, columns)

    def terms(block: Tensor, rows: slice, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """logsumexp of the rows, and of the columns as far as these rows go; the right logits, centred."""
        by_row = block - right[rows].unsqueeze(1)
        by_column = block - right
        return by_row.logsumexp(1), by_column.logsumexp(0), by_row.diagonal(rows.start)

    if len(blocks) == 1 and is_small:
        block = logits(blocks[0], slice(None))
        parts = [terms(block, blocks[0], block.detach().diagonal())]
    else:
        with torch.no_grad():
            right = torch.cat([logits(rows, rows).diagonal() for rows in blocks])
        parts = [_recomputed(lambda rows: terms(logits(rows, slice(None)), rows, right), b) for b in blocks]

    by_row = torch.cat([part[0] for part in parts])
    by_column = torch.stack([part[1] for part in parts]).logsumexp(0)
    centred = torch.cat([part[2] for part in parts])
    return (by_row.mean() + by_column.mean()) / 2 - centred.mean()


def _sigmoid(similarity: Similarity, blocks: list[slice], clip: nn.Module, is_small: bool) -> Tensor:
    """SigLIP's: -log sigmoid(z) of right pairs and -log sigmoid(-z) of all others, summed, per caption.

    z = exp(logit_scale) * similarity + logit_bias (Zhai et al. 2023, https://arxiv.org/abs/2303.15343,
    section 3.2).
    """
    if getattr(clip, "logit_bias", None) is None:
        raise ValueError("train.loss: sigmoid needs a model with a logit_bias, such as SigLIP; this has none")

    def total(rows: slice) -> Tensor:
        z = clip.logit_scale.float().exp() * similarity(rows, slice(None)) + clip.logit_bias.float()
        right = F.logsigmoid(z.diagonal(rows.start)).sum()
        negatives = F.logsigmoid(-z)
        own = torch.zeros_like(negatives, dtype=torch.bool).diagonal_scatter(
            torch.ones_like(z.diagonal(rows.start), dtype=torch.bool), rows.start
        )
        return -right - negatives.masked_fill(own, 0).sum()

    parts = [total(rows) if is_small else _recomputed(total, rows) for rows in blocks]
    return torch.stack(parts).sum() / blocks[-1].stop


def _recomputed(function: Callable[[slice], Any], rows: slice) -> Any:  # noqa: ANN401 - what it returns
    """Computed again for the gradients, so that its logits are not held until then."""
    return checkpoint(function, rows, use_reentrant=False, preserve_rng_state=False)


LOSSES: dict[LossName, Callable[[Similarity, list[slice], nn.Module, bool], Tensor]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
}
