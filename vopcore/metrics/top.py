"""The few videos that score best for each caption, without sorting all of them."""

from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 64  # neighbouring columns whose best is looked at first


class TopScores(NamedTuple):
    """columns Int64[n, K] and their scores Float[n, K], best first."""

    columns: Tensor
    scores: Tensor


def top_scores(scores: Tensor, num_top: int) -> TopScores:
    """The `num_top` best of each row of `scores` Float[n, V]; of equal ones any.

    The best `num_top` scores stand in the `num_top` groups of columns whose best scores are best, so only
    those are sorted: one pass over the block instead of a selection from all of it.
    """
    num_rows, num_columns = scores.shape
    num_groups = num_columns // GROUP
    if num_groups <= 2 * num_top:
        best = scores.topk(num_top, dim=1)
        return TopScores(best.indices, best.values)

    # columns that fill no group are candidates as they are
    grouped = scores[:, : num_groups * GROUP].view(num_rows, num_groups, GROUP)
    best_groups = grouped.amax(dim=2).topk(num_top, dim=1).indices
    within = torch.arange(GROUP, device=scores.device)
    candidates = (best_groups[:, :, None] * GROUP + within).flatten(1)
    rest = torch.arange(num_groups * GROUP, num_columns, device=scores.device)
    candidates = torch.cat([candidates, rest.expand(num_rows, -1)], dim=1)

    best = scores.gather(1, candidates).topk(num_top, dim=1)
    return TopScores(candidates.gather(1, best.indices), best.values)
