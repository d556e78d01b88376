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
    num_grouped = num_groups * GROUP

    # with few groups, finding the best of them is no less work than finding the best scores
    if num_groups <= 2 * num_top:
        best = scores.topk(num_top, dim=1)
        return TopScores(best.indices, best.values)

    groups = scores[:, :num_grouped].view(num_rows, num_groups, GROUP)
    best_of_group = groups.amax(dim=2)
    best_groups = best_of_group.topk(num_top, dim=1).indices

    # the columns of the best groups, and those at the end that fill no group
    column_in_group = torch.arange(GROUP, device=scores.device)
    first_columns = best_groups[:, :, None] * GROUP
    grouped_columns = (first_columns + column_in_group).flatten(1)
    last_columns = torch.arange(num_grouped, num_columns, device=scores.device)
    last_columns = last_columns.expand(num_rows, -1)
    candidates = torch.cat([grouped_columns, last_columns], dim=1)

    candidate_scores = scores.gather(1, candidates)
    best = candidate_scores.topk(num_top, dim=1)
    return TopScores(candidates.gather(1, best.indices), best.values)
