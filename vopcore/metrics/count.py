"""Two passes over blocks of similarities: who scores above and who ties with each query's right answer.

First every caption's own similarity and its rank among the videos, then every video's rank among the
captions. Both passes ask for the same blocks, so that a score equals itself to the last bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vopcore.metrics.ranks import NDCG_TOP, Ranks, expected_gain, ideal_gains

Similarity = Callable[[Tensor], Tensor]  # numbers of captions, Int64[n] -> their scores, Float[n, V]
BLOCK = 2**24  # similarities held at a time: 64 MB in fp32, and a few times that while they are compared
MAX_NAMED = 20  # ids in a message


class MetricError(ValueError):
    """Similarities that mean nothing; one line naming the videos or captions they belong to."""


@dataclass(frozen=True)
class Truth:
    """Which caption belongs to which video, and to which column of the similarities."""

    videos: list[str]  # [M], in the order of their first caption
    gallery: list[str]  # [V]
    video: Tensor  # Int64[N], each caption's place in `videos`
    column: Tensor  # Int64[M], each video's place in the gallery, -1: missing
    num_candidates: int  # videos there should be: those with captions, and the gallery's others

    @property
    def num_videos(self) -> int:
        return len(self.videos)

    @staticmethod
    def of(captions: Sequence[str], gallery: Sequence[str]) -> "Truth":
        place = {video: number for number, video in enumerate(dict.fromkeys(captions))}
        columns = {video: number for number, video in enumerate(gallery)}
        if len(columns) < len(gallery):
            raise MetricError(f"{len(gallery) - len(columns)} videos stand twice in the gallery")
        if not place.keys() & columns.keys():
            raise MetricError(f"none of the split's {len(place)} videos is in the gallery of {len(gallery)}")
        return Truth(
            videos=list(place),
            gallery=list(gallery),
            video=torch.tensor([place[video] for video in captions]),
            column=torch.tensor([columns.get(video, -1) for video in place]),
            num_candidates=len(place.keys() | columns.keys()),
        )

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Numbers of captions, whole videos at a time, about `size` similarities per block, all about
        equal.
        """
        order = self.video.argsort(stable=True)
        num_blocks = -(-len(order) * len(self.gallery) // size)
        ends = torch.bincount(self.video, minlength=self.num_videos).cumsum(0)
        wanted = (torch.arange(1, num_blocks + 1) * len(order)) // num_blocks
        cuts = ends[torch.searchsorted(ends, wanted)].unique()
        return iter(order.tensor_split(cuts[:-1]))


def rank_videos(similarity: Similarity, truth: Truth, block: int) -> tuple[Ranks, Tensor]:
    """Each caption's ranking of the gallery, and its similarity to its own video, Float[N] (0 where
    missing).
    """
    column = truth.column[truth.video]
    found = column >= 0
    above, tied = torch.zeros_like(column), torch.ones_like(column)
    own = torch.zeros(len(column), dtype=torch.float64)
    for rows in truth.blocks(block):
        scores = full_precision(similarity(rows))
        if not torch.isfinite(scores.sum()):
            check(similarity, truth, block)
        right = scores.gather(1, column[rows, None].clamp(min=0).to(scores.device))
        own[rows] = right[:, 0].double().cpu()
        above[rows] = total(scores > right, dim=1).cpu()
        tied[rows] = total(scores == right, dim=1).cpu()
    gain = expected_gain(above, tied) * found
    return Ranks(above, tied, torch.ones_like(tied), found, gain, truth.num_candidates), own


def rank_captions(
    similarity: Similarity, truth: Truth, own: Tensor, block: int
) -> tuple[Ranks, Ranks | None]:
    """Each video's ranking of the videos' sets of captions, and of all captions (None: one caption each)."""
    best = best_own(own, truth.video)
    several = len(best) > 1
    found = truth.column >= 0
    nobody = torch.full((len(best), len(truth.gallery)), torch.inf, dtype=torch.float64)
    bounds = nobody.index_copy(1, truth.column[found], best[:, found])
    sets, singles = torch.zeros(2, 1, len(truth.gallery)).long(), torch.zeros(2, *bounds.shape).long()
    for rows in truth.blocks(block):
        scores = full_precision(similarity(rows))
        if several:
            singles += count(scores, bounds)
            num_captions = truth.video[rows].unique(return_counts=True)[1].to(scores.device)
            scores = torch.segment_reduce(scores, "max", lengths=num_captions)
        sets += count(scores, bounds[:1])
    one = torch.ones_like(truth.column)
    above, tied = per_video(sets, truth)
    v2t = Ranks(above[0], tied[0], one, found, expected_gain(above[0], tied[0]) * found, truth.num_videos)
    if not several:
        return v2t, None
    above, tied = per_video(singles, truth)
    gain = gain_of_all(above, tied, best, own, truth.video) * found
    own_tied = torch.where(found, num_equal(best[0], own, truth.video), one)
    return v2t, Ranks(above[0], tied[0], own_tied, found, gain, len(own))


def count(scores: Tensor, bounds: Tensor) -> Tensor:
    """Int64[2, S, V]: how many of `scores` Float[n, V] are above and equal to `bounds` Float64[S, V]."""
    bounds = bounds.to(scores.device, scores.dtype)
    above = torch.stack([total(scores > bound, dim=0) for bound in bounds])
    equal = torch.stack([total(scores == bound, dim=0) for bound in bounds])
    return torch.stack([above, equal]).cpu()


def total(mask: Tensor, dim: int) -> Tensor:
    return mask.sum(dim, dtype=torch.int32).long()  # twice as fast as adding up in int64


def per_video(counts: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
    """(above, tied), each Int64[S, M]: counts of gallery columns brought to the videos; (0, 1) where
    missing.
    """
    above, tied = counts[:, :, truth.column.clamp(min=0)]
    missing = truth.column < 0
    return above.masked_fill(missing, 0), tied.masked_fill(missing, 1)


def best_own(own: Tensor, video: Tensor) -> Tensor:
    """Float64[S, M]: each video's best S similarities to its own captions, falling; inf where it has fewer.

    S = NDCG_TOP, or fewer if no video has so many captions: more cannot all be among the first NDCG_TOP.
    """
    order = own.argsort(descending=True, stable=True)
    order = order[video[order].argsort(stable=True)]
    num_captions = torch.bincount(video)
    place = torch.arange(len(own)) - (num_captions.cumsum(0) - num_captions)[video[order]]
    best = torch.full((min(NDCG_TOP, int(num_captions.max())), len(num_captions)), torch.inf, dtype=own.dtype)
    kept = place < len(best)
    best[place[kept], video[order][kept]] = own[order][kept]
    return best


def num_equal(bound: Tensor, own: Tensor, video: Tensor) -> Tensor:
    """Int64[M]: how many of a video's own captions score exactly `bound` Float64[M]."""
    return torch.bincount(video, weights=(own == bound[video]).double(), minlength=len(bound)).long()


def gain_of_all(above: Tensor, tied: Tensor, best: Tensor, own: Tensor, video: Tensor) -> Tensor:
    """Float64[M]: nDCG where every caption of the video is a right answer; `above`, `tied`: Int64[S, M] of
    `best`.
    """
    gains = torch.where(best.isfinite(), expected_gain(above, tied.clamp(min=1)), 0.0)
    more = (num_equal(best[-1], own, video) - (best == best[-1]).sum(dim=0)).clamp(
        min=0
    )  # tied with the last of `best`
    ideal = ideal_gains()[torch.bincount(video).clamp(max=NDCG_TOP)]
    return (gains.sum(dim=0) + more * gains[-1]) / ideal


def full_precision(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def check(similarity: Similarity, truth: Truth, block: int) -> None:
    """Raises MetricError naming the videos, or else the captions, whose similarities are not finite."""
    bad_rows = torch.zeros(len(truth.video), dtype=torch.int64)
    bad_columns = torch.zeros(len(truth.gallery), dtype=torch.int64)
    for rows in truth.blocks(block):
        bad = ~torch.isfinite(similarity(rows)).cpu()
        bad_rows[rows] = bad.sum(dim=1)
        bad_columns += bad.sum(dim=0)
    videos = [truth.gallery[column] for column in (bad_columns == len(bad_rows)).nonzero()[:, 0]]
    captions = (bad_rows > len(videos)).nonzero()[:, 0].tolist()
    if videos or captions:
        named = [f"video {video}" for video in videos]
        named += [f"caption {row} of {truth.videos[truth.video[row]]}" for row in captions]
        more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
        raise MetricError(f"similarities are NaN or infinite: {', '.join(named[:MAX_NAMED])}{more}")
