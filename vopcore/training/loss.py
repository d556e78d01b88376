"""Losses over the pairs of all workers: softmax in both directions (CLIP), or a sigmoid per pair (SigLIP)."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.utils.checkpoint import checkpoint

from vopcore.clip.interface import CLIP, AutogradContext
from vopcore.retriever import Retriever
from vopcore.training.distill import Lesson, distance

# (text, frame) pairs of a block of logits: a few times 256 MiB.
BLOCK = 2**26

LossName = Literal["softmax", "sigmoid"]

Similarity = Callable[[slice, slice], Tensor]
"""rows of texts, columns of videos -> their cosines [rows, columns]"""


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all workers.

    Each worker then computes the same loss of all rows, so the gradient of its own rows is already complete.
    It is multiplied by the number of workers because DistributedDataParallel divides by it.
    """

    @staticmethod
    def forward(
        ctx: AutogradContext,
        rows: Tensor,
        counts: list[int],
    ) -> Tensor:
        rank = distributed.get_rank()
        ctx.start = sum(counts[:rank])
        ctx.stop = ctx.start + counts[rank]
        ctx.workers = len(counts)

        # Gathering wants equal shapes: shorter tensors are padded here, and cut again below.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(gathered, padded)

        worker_rows = []
        for tensor, count in zip(gathered, counts, strict=True):
            worker_rows.append(tensor[:count])
        return torch.cat(worker_rows)

    @staticmethod
    def backward(
        ctx: AutogradContext,
        gradient: Tensor,
    ) -> tuple[Tensor, None]:
        own_rows = gradient[ctx.start : ctx.stop]
        return own_rows * ctx.workers, None


def gather(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows of all workers in the order of their ranks, with gradients; the arguments if there is one.

    Workers may hold different numbers of rows, but all tensors of one worker the same.
    """
    if not is_shared():
        return tensors

    # Everyone must know how many rows the others send.
    first = tensors[0]
    count = torch.tensor([len(first)], device=first.device)
    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    lengths = [int(count) for count in counts]

    gathered = []
    for tensor in tensors:
        # Booleans travel as bytes, which every backend gathers.
        if tensor.dtype == torch.bool:
            rows = _Gather.apply(tensor.byte(), lengths).bool()
        else:
            rows = _Gather.apply(tensor.contiguous(), lengths)
        gathered.append(rows)
    return tuple(gathered)


def is_shared() -> bool:
    """Whether other workers hold a part of the batch."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def loss_of(
    name: LossName,
    text: Tensor,
    video: Tensor,
    mask: Tensor | None,
    retriever: Retriever,
    identity: Tensor | None = None,
    lesson: Lesson | None = None,
) -> Tensor:
    """The loss `name` over the pairs of all workers; a scalar.

    text [N, D] and video [N, F, D] with mask Bool [N, F] are this worker's part, caption i belonging to
    video i. Under DistributedDataParallel the gradients are those of one worker with the whole batch, for
    any number of workers and uneven parts. `retriever` is the Retriever itself, not its DDP wrapper.
    identity: Int64 [N, K], numbers of the caption and its video; a pair of two rows that share one of them
    is left out, being no negative. lesson: what a teacher says of this worker's part; how far the cosines
    are from its own (`distill.distance`), times its weight, is added. Memory is that of BLOCK logits, for any
    number of pairs: each block is computed again for its gradients; a lesson adds a few matrices [N, N].
    """
    tensors = [text, video]
    if mask is not None:
        tensors.append(mask)
    if identity is not None:
        tensors.append(identity)
    if lesson is not None:
        tensors += [lesson.text, lesson.video]

    # One meeting of the workers for all tensors; what is optional comes off the end.
    text, video, *optional = gather(*tensors)
    if lesson is not None:
        taught_video = optional.pop()
        taught_text = optional.pop()
        lesson = replace(lesson, text=taught_text, video=taught_video)
    if identity is not None:
        identity = optional.pop()
    if mask is not None:
        mask = optional.pop()

    def compare(rows: slice, columns: slice) -> Tensor:
        """Of the texts `rows` and the videos `columns`."""
        frame_mask = None if mask is None else mask[columns]
        return retriever.compare(
            text[rows],
            video[columns],
            frame_mask,
        )

    def similarity(rows: slice, columns: slice) -> Tensor:
        """The same, -inf where a pair is left out."""
        cosines = compare(rows, columns)
        if identity is None:
            return cosines

        same = _is_same_pair(identity, rows, columns)
        return cosines.masked_fill(same, float("-inf"))

    # A text meets every frame: blocks are of as many texts as BLOCK pairs allow.
    num_texts = len(text)
    num_frames = video[..., 0].numel()
    blocks = _blocks(num_texts, block_rows=max(1, BLOCK // num_frames))

    # Little to hold until the gradients are computed: nothing is computed twice.
    is_small = num_texts * num_frames <= BLOCK // 64

    compute = LOSSES[name]
    loss = compute(
        similarity,
        blocks,
        retriever.clip,
        is_small,
    )
    if lesson is None:
        return loss
    distance = _distance_from(
        lesson,
        compare,
        blocks,
        retriever.clip,
        is_small,
    )
    return loss + lesson.weight * distance


def _distance_from(
    lesson: Lesson,
    compare: Similarity,
    blocks: list[slice],
    clip: CLIP,
    is_small: bool,
) -> Tensor:
    """How far the cosines are from the teacher's; a pair that is no negative has one there too."""

    def cosines_of(rows: slice) -> Tensor:
        return compare(rows, slice(None))

    cosines = []
    for rows in blocks:
        block = cosines_of(rows) if is_small else _recomputed(cosines_of, rows)
        cosines.append(block)

    scale = clip.logit_scale.float().exp()
    student = scale * torch.cat(cosines)
    with torch.no_grad():
        teacher = lesson.scale * lesson.similarity()
    return distance(student, teacher)


def _blocks(num_rows: int, block_rows: int) -> list[slice]:
    """All rows in order, in blocks of `block_rows`; the last one may have fewer."""
    blocks = []
    for start in range(0, num_rows, block_rows):
        stop = min(start + block_rows, num_rows)
        blocks.append(slice(start, stop))
    return blocks


def pair_numbers(videos: list[str], captions: list[str]) -> Tensor:
    """Int64 [N, 2] for each pair's caption and video, the same on every worker: `identity` of `loss_of`."""
    rows = []
    for video, caption in zip(videos, captions, strict=True):
        caption_number = _number(f"caption {caption}")
        video_number = _number(f"video {video}")
        rows.append([caption_number, video_number])
    return torch.tensor(rows)


def _number(name: str) -> int:
    """63 bits of a hash: two of a million names have the same once in 20 million."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def contrastive(
    text: Tensor,
    video: Tensor,
    mask: Tensor | None,
    retriever: Retriever,
    identity: Tensor | None = None,
) -> Tensor:
    """0.5 [CE(S) + CE(S^T)] with S = exp(logit_scale) * similarity; the arguments of `loss_of`."""
    return loss_of(
        "softmax",
        text,
        video,
        mask,
        retriever,
        identity,
    )


def _is_same_pair(
    identity: Tensor,
    rows: slice,
    columns: slice,
) -> Tensor:
    """Bool [rows, columns]: pairs of two different rows of `identity` that share a number."""
    row_identity = identity[rows, None]
    column_identity = identity[None, columns]
    shares_number = (row_identity == column_identity).any(dim=-1)

    # A row shares its numbers with itself, and that is the pair to be learned.
    numbers = torch.arange(len(identity), device=identity.device)
    is_other_row = numbers[rows, None] != numbers[None, columns]
    return shares_number & is_other_row


def _softmax(
    similarity: Similarity,
    blocks: list[slice],
    clip: CLIP,
    is_small: bool,
) -> Tensor:
    """Cross-entropy of the rows and of the columns, halved.

    The logit of the right pair is subtracted first: small differences keep their precision.
    """

    def logits(rows: slice, columns: slice) -> Tensor:
        scale = clip.logit_scale.float().exp()
        return scale * similarity(rows, columns)

    def terms(
        block: Tensor,
        rows: slice,
        right: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """logsumexp of the rows, and of the columns as far as these rows go; the right logits, centred."""
        by_row = block - right[rows].unsqueeze(1)
        by_column = block - right
        centred = by_row.diagonal(rows.start)
        return by_row.logsumexp(1), by_column.logsumexp(0), centred

    if len(blocks) == 1 and is_small:
        block = logits(blocks[0], slice(None))
        right = block.detach().diagonal()
        block_terms = [terms(block, blocks[0], right)]
    else:
        # The columns need the right logits of all rows before the first block is computed.
        with torch.no_grad():
            diagonals = [logits(rows, rows).diagonal() for rows in blocks]
            right = torch.cat(diagonals)

        def terms_of_rows(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            return terms(logits(rows, slice(None)), rows, right)

        block_terms = [_recomputed(terms_of_rows, rows) for rows in blocks]

    row_sums = []
    column_sums = []
    right_logits = []
    for row_sum, column_sum, right_logit in block_terms:
        row_sums.append(row_sum)
        column_sums.append(column_sum)
        right_logits.append(right_logit)

    by_row = torch.cat(row_sums)
    by_column = torch.stack(column_sums).logsumexp(0)
    centred = torch.cat(right_logits)
    both_directions = (by_row.mean() + by_column.mean()) / 2
    return both_directions - centred.mean()


def _sigmoid(
    similarity: Similarity,
    blocks: list[slice],
    clip: CLIP,
    is_small: bool,
) -> Tensor:
    """SigLIP's: -log sigmoid(z) of right pairs and -log sigmoid(-z) of all others, summed, per caption.

    z = exp(logit_scale) * similarity + logit_bias (Zhai et al. 2023, https://arxiv.org/abs/2303.15343,
    section 3.2). Raises ValueError for a model without a logit_bias.
    """
    logit_bias: Tensor | None = getattr(clip, "logit_bias", None)
    if logit_bias is None:
        raise ValueError("train.loss: sigmoid needs a model with a logit_bias, such as SigLIP; this has none")

    def total(rows: slice) -> Tensor:
        scale = clip.logit_scale.float().exp()
        bias = logit_bias.float()
        z = scale * similarity(rows, slice(None)) + bias
        right_logits = z.diagonal(rows.start)
        right = F.logsigmoid(right_logits).sum()
        negatives = F.logsigmoid(-z)

        # A right pair is no negative of its own: its term leaves the sum.
        is_nothing = torch.zeros_like(negatives, dtype=torch.bool)
        ones = torch.ones_like(right_logits, dtype=torch.bool)
        is_right = is_nothing.diagonal_scatter(ones, rows.start)
        return -right - negatives.masked_fill(is_right, 0).sum()

    totals = []
    for rows in blocks:
        block_total = total(rows) if is_small else _recomputed(total, rows)
        totals.append(block_total)

    num_captions = blocks[-1].stop
    return torch.stack(totals).sum() / num_captions


def _recomputed(
    function: Callable[[slice], Any],
    rows: slice,
) -> Any:  # noqa: ANN401 - what it returns
    """Computed again for the gradients, so that its logits are not held until then."""
    return checkpoint(
        function,
        rows,
        use_reentrant=False,
        preserve_rng_state=False,
    )


LossFunction = Callable[[Similarity, list[slice], CLIP, bool], Tensor]

LOSSES: dict[LossName, LossFunction] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
}
