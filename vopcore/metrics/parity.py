"""The numbers that published scripts print, flaws included: for comparing with papers, never for reporting.

What they do with ties, NaN and medians differs from `evaluate` and from each other; each function says how.
All take the whole matrix, Float[N, V], and `owner` Int64[N], each caption's column.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vopcore.metrics import names
from vopcore.metrics.count import Similarity
from vopcore.metrics.truth import MetricError

Numbers = dict[str, float]

CAPTIONS_AT_ONCE = 1024  # rows of the matrix that are asked for together


def clip4clip(similarity: Tensor, owner: Tensor) -> Numbers:
    """CLIP4Clip's eval_epoch (metrics.py, the same body in CMA, DRL, DGL, TS2-Net).

    One caption per video, in both directions: a query that ties with m candidates is counted m times, at
    consecutive ranks. A query whose right score is NaN or infinite leaves the denominator. NaN elsewhere
    ranks last.

    Several captions: t2v sorts NaN first, leaves ties as the sort leaves them, and takes the lower of the two
    middle ranks as median. v2t takes a video's best caption, which is never NaN, and then counts as above.
    """
    num_videos = similarity.shape[1]
    each_video_once = torch.arange(num_videos)
    if torch.equal(owner, each_video_once):
        t2v = repeated_ranks(similarity)
        v2t = repeated_ranks(similarity.T)
        return named(names.T2V, t2v) | named(names.V2T, v2t)

    padded_scores = padded(similarity.double(), owner)
    t2v = sorted_ranks(padded_scores)
    v2t = repeated_ranks(best_caption(padded_scores))

    numbers = named(names.T2V, t2v)
    if len(t2v):
        # torch's median is the lower of the two middle ranks, NumPy's is their mean
        lower_median = t2v.median().item()
        numbers[names.of(names.T2V, "MdR")] = lower_median + 1.0
    return numbers | named(names.V2T, v2t)


def xpool(similarity: Tensor, owner: Tensor) -> Numbers:
    """X-Pool's modules/metrics.py.

    Ties stand as the sort leaves them, in both directions; NaN ranks first in t2v and last in v2t. Queries
    whose right score is NaN or infinite are left out of t2v. The median is the mean of the two middle ranks.
    R100 is printed as well.
    """
    padded_scores = padded(similarity, owner)
    t2v = sorted_ranks(padded_scores)

    # a video is a row of one slot, and every video's row is counted
    best_scores = best_caption(padded_scores)
    v2t = sorted_ranks(best_scores[:, None], keep_all=True)

    numbers = named(names.T2V, t2v) | named(names.V2T, v2t)
    numbers[names.of(names.T2V, "R100")] = share(t2v, 100)
    numbers[names.of(names.V2T, "R100")] = share(v2t, 100)
    return numbers


def qb_norm(similarity: Tensor, owner: Tensor) -> Numbers:
    """QB-Norm's metric.py (of Collaborative Experts).

    A tied query gets the mean of its ranks and is a hit only if that is below K. v2t ranks a video's best
    caption among all captions. Numbers have one decimal. Raises MetricError on NaN and infinity.
    """
    if not torch.isfinite(similarity).all():
        raise MetricError("QB-Norm's script has no rule for similarities that are NaN or infinite")

    right_scores = similarity.gather(1, owner[:, None])
    t2v = mean_ranks(similarity, right_scores)

    # each caption is ranked among all captions by the column of its video; the best counts for the video
    scores_of_captions = similarity.T[owner]
    caption_ranks = mean_ranks(scores_of_captions, right_scores)
    best_ranks = []
    for video in owner.unique():
        best_ranks.append(caption_ranks[owner == video].min())
    v2t = torch.stack(best_ranks)

    t2v_numbers = qb_norm_numbers(names.T2V, t2v)
    v2t_numbers = qb_norm_numbers(names.V2T, v2t)
    numbers = t2v_numbers | v2t_numbers
    return {name: one_decimal(name, number) for name, number in numbers.items()}


def qb_norm_numbers(direction: str, ranks: Tensor) -> Numbers:
    """The numbers of one direction, with the geometric mean of R1, R5 and R10, before they are rounded."""
    numbers = named(direction, ranks)

    # a rank of 0.5 is a tie of two, which the script does not count as a hit
    numbers[f"{direction}/R1"] = share(ranks, 0.5)

    recalls = [numbers[f"{direction}/R{top}"] for top in (1, 5, 10)]
    shares = np.array(recalls)

    # a share of 0 has no logarithm, and makes the mean 0
    geometric = 0.0
    if shares.all():
        mean_log = np.log(shares).mean()
        geometric = float(np.exp(mean_log))
    numbers[f"{direction}/geometric"] = geometric
    return numbers


def one_decimal(name: str, number: float) -> float:
    """Rounded as the script does: recalls are Python floats, which round exactly; medians, means and the
    geometric mean are NumPy's, which multiplies by ten before it rounds.
    """
    if "/R" in name:
        return round(number, 1)
    return float(np.round(number, 1))


PARITY: dict[str, Callable[[Tensor, Tensor], Numbers]] = {
    "clip4clip": clip4clip,
    "xpool": xpool,
    "qb_norm": qb_norm,
}


def published(
    name: str,
    similarity: Similarity,
    captions: Sequence[str],
    gallery: Sequence[str],
) -> Numbers:
    """What the script `name` prints, as `name`/t2v/R1 ...; the arguments are those of `evaluate`.

    Captions of videos that are not in the gallery are left out, as these scripts do. Holds all N x V
    similarities.
    """
    column_of_video = {video: column for column, video in enumerate(gallery)}

    # pairs of a caption and the column of its video
    rows = []
    columns = []
    for row, video in enumerate(captions):
        column = column_of_video.get(video)
        if column is not None:
            rows.append(row)
            columns.append(column)
    owner = torch.tensor(columns)

    blocks = torch.tensor(rows).split(CAPTIONS_AT_ONCE)
    matrix = torch.cat([similarity(block).cpu() for block in blocks])

    # the galleries of the scripts hold the videos of the captions alone
    queried_columns = owner.unique()
    matrix = matrix[:, queried_columns]
    owner = torch.searchsorted(queried_columns, owner)

    # and the captions of a video stand together
    order = owner.argsort(stable=True)
    numbers = PARITY[name](matrix[order], owner[order])
    return {f"{name}/{key}": number for key, number in numbers.items()}


def named(direction: str, ranks: Tensor) -> Numbers:
    """R1 ... R50, MdR, MnR of 0-based ranks; NaN where no query is left."""
    numbers = {}
    for top in names.RECALL_TOPS:
        numbers[f"{direction}/R{top}"] = share(ranks, top)

    median = float("nan")
    mean = float("nan")
    if len(ranks):
        median = float(np.median(ranks))
        mean = float(ranks.numpy().mean())
    numbers[f"{direction}/MdR"] = median + 1
    numbers[f"{direction}/MnR"] = mean + 1
    return numbers


def share(ranks: Tensor, top: float) -> float:
    """How many of the 0-based ranks are below `top`, in percent; NaN of no rank."""
    if not len(ranks):
        return float("nan")
    num_hits = float((ranks < top).sum())
    return 100 * num_hits / len(ranks)


def repeated_ranks(similarity: Tensor) -> Tensor:
    """Int64[>= 0]: 0-based ranks of the diagonal's scores in their rows, one for each candidate that scores
    the same.
    """
    right_scores = similarity.diagonal()[:, None]
    above = (similarity > right_scores).sum(dim=1)
    tied = (similarity == right_scores).sum(dim=1)

    # a query whose right score is NaN or infinite gives no rank
    is_counted = right_scores[:, 0].isfinite()
    tied = tied * is_counted

    # a query with m tied candidates gives the ranks above, above + 1, ..., above + m - 1
    first_rank = above.repeat_interleave(tied)
    start_of_query = tied.cumsum(0) - tied
    start_of_rank = start_of_query.repeat_interleave(tied)
    place_in_query = torch.arange(len(first_rank)) - start_of_rank
    return first_rank + place_in_query


def mean_ranks(similarity: Tensor, right_scores: Tensor) -> Tensor:
    """Float64[Q]: 0-based rank of `right_scores` Float[Q, 1] in each row, the mean over candidates that score
    the same.
    """
    above = (similarity > right_scores).sum(dim=1)
    tied = (similarity == right_scores).sum(dim=1)

    # the right candidate is one of the tied
    tied_others = tied - 1
    return above + tied_others.double() / 2


def sorted_ranks(padded_scores: Tensor, keep_all: bool = False) -> Tensor:
    """Int64[<= V * T]: 0-based ranks of each video in the rows of its captions, Float[V, T, V].

    A descending sort that is not stable decides about ties. The ranks stand caption slot by caption slot;
    rows whose right score is not finite are left out, unless `keep_all`.
    """
    slots = padded_scores.permute(1, 0, 2)  # [T, V, V]
    order = slots.argsort(dim=-1, descending=True)

    # the rank is the place at which the sort has put the right column
    num_videos = padded_scores.shape[0]
    right_columns = torch.arange(num_videos)
    is_right = order == right_columns[:, None]
    ranks = is_right.int().argmax(dim=-1)
    if keep_all:
        return ranks.flatten()

    right_scores = slots.diagonal(dim1=1, dim2=2)
    return ranks[right_scores.isfinite()]


def padded(similarity: Tensor, owner: Tensor) -> Tensor:
    """Float[V, T, V]: each video's captions, -inf where it has fewer than T; `owner` must rise."""
    num_videos = similarity.shape[1]
    num_captions = owner.bincount(minlength=num_videos)
    most_captions = int(num_captions.max())

    # captions of a video stand together, so a caption's slot is its distance to the first of them
    first_caption = num_captions.cumsum(0) - num_captions
    slot = torch.arange(len(owner)) - first_caption[owner]

    shape = (num_videos, most_captions, num_videos)
    padded_scores = similarity.new_full(shape, -torch.inf)
    padded_scores[owner, slot] = similarity
    return padded_scores


def best_caption(padded_scores: Tensor) -> Tensor:
    """Float[V, V]: row v, column u is the score of video v for the best caption of video u; NaN is never the
    best.
    """
    is_nan = padded_scores.isnan()
    numbers = padded_scores.masked_fill(is_nan, -torch.inf)
    best = numbers.amax(dim=1)
    return best.T
