"""Post-processing of similarities that many papers add at test time: DSL and QB-Norm.

Both make a new `Similarity` from one, in blocks; nothing is overwritten. Evaluate the plain one too, and
say which is which: `evaluate(dsl(similarity, n), ..., post_processing="dsl")`. DSL needs all test queries
at once and assumes that each video is asked for once; QB-Norm needs a bank of other queries. Both compute
in fp64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vopcore.metrics.count import BLOCK, Similarity


def dsl(
    similarity: Similarity,
    num_captions: int,
    scale: float = 100.0,
) -> Similarity:
    """Dual softmax at test as in TS2-Net: s * softmax(s over the captions), s = scale x cosine.

    CAMoE (Cheng et al., 2021) brought it in as a loss; 100 is CLIP's temperature. Serves both directions.
    """
    total = sum_exp(similarity, num_captions, scale)

    def rescaled(rows: Tensor) -> Tensor:
        scores = similarity(rows).double() * scale
        softmax = (scores - total).exp()
        return scores * softmax

    return rescaled


def qb_norm(
    similarity: Similarity,
    bank: Similarity,
    bank_size: int,
    beta: float = 20.0,
    k: int = 1,
) -> Similarity:
    """Dynamic inverted softmax (QB-Norm, Bogolin et al., CVPR 2022): hubs are played down, for t2v.

    bank: similarities of `bank_size` other captions (the training split's) to the same gallery. A caption
    whose best video is among the `k` best of some bank caption gets exp(beta s) / sum over the bank of
    exp(beta s); others keep s. Rows are then on two scales, so only t2v means something; for v2t swap the
    roles.
    """
    total = sum_exp(bank, bank_size, beta)

    # a hub is a video that stands on top for some caption of the bank
    is_hub = torch.zeros(len(total), dtype=torch.bool, device=total.device)
    for rows in blocks(bank, bank_size):
        best_columns = bank(rows).topk(k, dim=1).indices
        is_hub[best_columns.flatten()] = True

    def rescaled(rows: Tensor) -> Tensor:
        scores = similarity(rows).double()
        normalised = (beta * scores - total).exp()
        best_column = scores.argmax(dim=1)
        has_hub_on_top = is_hub[best_column]
        return torch.where(has_hub_on_top[:, None], normalised, scores)

    return rescaled


def sum_exp(
    similarity: Similarity,
    num_captions: int,
    scale: float,
) -> Tensor:
    """Float64[V]: log of the sum over captions of exp(scale * s)."""
    log_sums = []
    for rows in blocks(similarity, num_captions):
        scores = similarity(rows).double() * scale
        log_sums.append(scores.logsumexp(dim=0))
    return torch.stack(log_sums).logsumexp(dim=0)


def blocks(similarity: Similarity, num_captions: int) -> Iterator[Tensor]:
    """Numbers of all captions, a block's worth at a time."""
    first_row = similarity(torch.arange(1))
    num_videos = first_row.shape[1]
    captions_at_once = max(1, BLOCK // num_videos)
    return iter(torch.arange(num_captions).split(captions_at_once))
