"""The numbers that published scripts print, flaws included: for comparing with papers, never for reporting.

What they do with ties, NaN and medians differs from `evaluate` and from each other; each function says how.
All take the whole matrix, Float[N, V], and `owner` Int64[N], each caption's column.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vopcore.metrics.count import Similarity
from vopcore.metrics.truth import MetricError

Numbers = dict[str, float]


def clip4clip(similarity: Tensor, owner: Tensor) -> Numbers:
    """CLIP4Clip's eval_epoch (metrics.py, the same body in CMA, DRL, DGL, TS2-Net).

    One caption per video, both ways: a query that ties with m candidates enters m times, at consecutive
    ranks; one whose own score is NaN or infinite leaves the denominator; NaN elsewhere ranks last. Several
    captions: t2v sorts NaN first, ties as the sort leaves them, and takes the lower middle as median; v2t
    is by the best caption, NaN never being it, then as above.
    """
    if torch.equal(owner, torch.arange(similarity.shape[1])):
        return named("t2v", repeated_ranks(similarity)) | named("v2t", repeated_ranks(similarity.T))
    sims = padded(similarity.double(), owner)
    t2v = sorted_ranks(sims)
    lower_median = {"t2v/MdR": t2v.median().item() + 1.0} if len(t2v) else {}
    return named("t2v", t2v) | lower_median | named("v2t", repeated_ranks(best_caption(sims)))


def xpool(similarity: Tensor, owner: Tensor) -> Numbers:
    """X-Pool's modules/metrics.py: both ways ties as the sort leaves them, NaN first in t2v and last in
    v2t, queries whose own score is NaN or infinite left out of t2v, median of the two middle ranks; R100 as
    well.
    """
    sims = padded(similarity, owner)
    t2v, v2t = sorted_ranks(sims), sorted_ranks(best_caption(sims)[:, None], keep_all=True)
    numbers = named("t2v", t2v) | named("v2t", v2t)
    return numbers | {f"{name}/R100": share(ranks, 100) for name, ranks in [("t2v", t2v), ("v2t", v2t)]}


def qb_norm(similarity: Tensor, owner: Tensor) -> Numbers:
    """QB-Norm's metric.py (of Collaborative Experts): a tied query gets the mean of its ranks and is a hit
    only if that is below K; v2t takes the best own caption among all captions; one decimal. Raises
    MetricError on NaN.
    """
    if not torch.isfinite(similarity).all():
        raise MetricError("QB-Norm's script has no rule for similarities that are NaN or infinite")
    numbers = {}
    t2v = mean_ranks(similarity, similarity.gather(1, owner[:, None]))
    by_caption = mean_ranks(similarity.T[owner], similarity.gather(1, owner[:, None]))
    v2t = torch.stack([by_caption[owner == video].min() for video in owner.unique()])
    for name, ranks in [("t2v", t2v), ("v2t", v2t)]:
        numbers |= named(name, ranks) | {f"{name}/R1": share(ranks, 0.5)}
        shares = np.array([numbers[f"{name}/R{top}"] for top in (1, 5, 10)])
        numbers[f"{name}/geometric"] = float(np.exp(np.log(shares).mean())) if shares.all() else 0.0
    return {name: one_decimal(name, number) for name, number in numbers.items()}


def one_decimal(name: str, number: float) -> float:
    """As there: recalls are Python's floats, rounded exactly, the others NumPy's, rounded after times ten."""
    return round(number, 1) if "/R" in name else float(np.round(number, 1))


PARITY: dict[str, Callable[[Tensor, Tensor], Numbers]] = {
    "clip4clip": clip4clip,
    "xpool": xpool,
    "qb_norm": qb_norm,
}


def published(name: str, similarity: Similarity, captions: Sequence[str], gallery: Sequence[str]) -> Numbers:
    """What the script `name` prints, as `name`/t2v/R1 ...; the arguments are those of `evaluate`.

    Captions of videos that are not in the gallery are left out, as these scripts do. Holds all N x V
    similarities.
    """
    column = {video: number for number, video in enumerate(gallery)}
    rows = torch.tensor([row for row, video in enumerate(captions) if video in column])
    owner = torch.tensor([column[captions[row]] for row in rows])
    queried = owner.unique()  # the scripts' galleries hold the videos of the captions
    matrix = torch.cat([similarity(some).cpu() for some in rows.split(1024)])[:, queried]
    owner = torch.searchsorted(queried, owner)
    order = owner.argsort(stable=True)
    return {f"{name}/{key}": number for key, number in PARITY[name](matrix[order], owner[order]).items()}


def named(direction: str, ranks: Tensor) -> Numbers:
    """R1 ... R50, MdR, MnR of 0-based ranks; NaN where no query is left."""
    numbers = {f"R{top}": share(ranks, top) for top in (1, 5, 10, 50)}
    median, mean = (np.median(ranks), ranks.numpy().mean()) if len(ranks) else (np.nan, np.nan)
    numbers |= {"MdR": float(median) + 1, "MnR": float(mean) + 1}
    return {f"{direction}/{name}": number for name, number in numbers.items()}


def share(ranks: Tensor, top: float) -> float:
    return 100 * float((ranks < top).sum()) / len(ranks) if len(ranks) else float("nan")


def repeated_ranks(similarity: Tensor) -> Tensor:
    """Int64[>= 0]: 0-based ranks of the diagonal's scores in their rows, one for each candidate that scores
    so.
    """
    own = similarity.diagonal()[:, None]
    above = (similarity > own).sum(dim=1)
    tied = (similarity == own).sum(dim=1) * own[:, 0].isfinite()
    first = above.repeat_interleave(tied)
    within = torch.arange(len(first)) - (tied.cumsum(0) - tied).repeat_interleave(tied)
    return first + within


def mean_ranks(similarity: Tensor, own: Tensor) -> Tensor:
    """Float64[Q]: 0-based rank of `own` Float[Q, 1] in each row, the mean over candidates that score so."""
    return (similarity > own).sum(dim=1) + ((similarity == own).sum(dim=1) - 1).double() / 2


def sorted_ranks(sims: Tensor, keep_all: bool = False) -> Tensor:
    """Int64[<= V * T]: 0-based ranks of each video in the rows of its captions, Float[V, T, V], as a
    descending sort that is not stable leaves them, caption slot by caption slot; rows without a finite own
    score left out.
    """
    slots = sims.permute(1, 0, 2)
    order = slots.argsort(dim=-1, descending=True)
    own = torch.arange(sims.shape[0])
    ranks = (order == own[:, None]).int().argmax(dim=-1)
    finite = slots.diagonal(dim1=1, dim2=2).isfinite()
    return ranks.flatten() if keep_all else ranks[finite]


def padded(similarity: Tensor, owner: Tensor) -> Tensor:
    """Float[V, T, V]: each video's captions, -inf where it has fewer than T; `owner` must rise."""
    num_captions = owner.bincount(minlength=similarity.shape[1])
    slot = torch.arange(len(owner)) - (num_captions.cumsum(0) - num_captions)[owner]
    sims = similarity.new_full(
        (similarity.shape[1], int(num_captions.max()), similarity.shape[1]), -torch.inf
    )
    sims[owner, slot] = similarity
    return sims


def best_caption(sims: Tensor) -> Tensor:
    """Float[V, V]: rows are videos, columns the videos whose best caption it is; NaN is never the best."""
    return sims.masked_fill(sims.isnan(), -torch.inf).amax(dim=1).T
