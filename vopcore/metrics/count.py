"""Counting, block by block, who scores above and who ties with each query's right answer.

A caption's ranking of the videos and a video's ranking of the captions are counted from the same scores, so
that a score equals itself to the last bit. Both counters add up over blocks, in any order and on any number
of processes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vopcore.metrics.ranks import NDCG_TOP, Ranks, expected_gain, ideal_gains
from vopcore.metrics.top import top_scores
from vopcore.metrics.truth import MetricError, Truth
from vopcore.metrics.workers import Workers

# numbers of captions, Int64[n] -> their scores, Float[n, V]
Similarity = Callable[[Tensor], Tensor]

# similarities held at a time: 64 MB in fp32, and a few times that while they are compared
BLOCK = 2**24
MAX_NAMED = 20  # ids in a message


class Candidates(NamedTuple):
    """Scores of a block that can matter, a pair of a caption and a video each; every other is below them.

    places Int64[P]: the caption's row in the block; columns Int64[P]; scores Float32[P].
    """

    places: Tensor
    columns: Tensor
    scores: Tensor


class VideoCounter:
    """Each caption's ranking of the gallery.

    above, tied: Int64[N], gallery videos that score above and exactly as the caption's own video.
    correct_scores: Float64[N], the score of a caption's own video, 0 where that is missing.
    top_columns Int64[N, K], top_scores Float32[N, K]: the K videos that score best, best first.
    """

    def __init__(self, truth: Truth, num_top: int = 0) -> None:
        num_captions = len(truth.video)
        num_top = min(num_top, len(truth.gallery))
        self._truth = truth
        self._column = truth.column[truth.video]
        self.above = torch.zeros(num_captions, dtype=torch.int64)
        self.tied = torch.zeros(num_captions, dtype=torch.int64)
        self.correct_scores = torch.zeros(num_captions, dtype=torch.float64)
        self.top_columns = torch.zeros(num_captions, num_top, dtype=torch.int64)
        self.top_scores = torch.zeros(num_captions, num_top)

    def add(self, rows: Tensor, scores: Tensor) -> None:
        """Count a block: `scores` Float[n, V] of the captions `rows` Int64[n], on any device."""
        # a caption whose video is missing is counted against the first column, and masked in `ranks`
        column = self._column[rows].clamp(min=0)
        column = column.to(scores.device)
        correct = scores.gather(1, column[:, None])
        self.correct_scores[rows] = correct[:, 0].double().cpu()

        above = count_true(scores > correct, dim=1)
        tied = count_true(scores == correct, dim=1)
        self.above[rows] = above.cpu()
        self.tied[rows] = tied.cpu()

        num_top = self.top_scores.shape[1]
        if num_top:
            top = top_scores(scores, num_top)
            self.top_columns[rows] = top.columns.cpu()
            self.top_scores[rows] = top.scores.float().cpu()

    def add_candidates(
        self,
        rows: Tensor,
        candidates: Candidates,
        correct: Tensor,
    ) -> None:
        """Count the block of captions `rows` Int64[n], of whose own videos the scores are `correct`
        Float32[n].
        """
        places, columns, scores = candidates
        num_rows = len(rows)

        # what is no candidate scores below the own video, so it is neither above nor tied
        correct = correct.to(scores.device)
        correct_of_pair = correct[places]
        places_above = places[scores > correct_of_pair]
        places_tied = places[scores == correct_of_pair]
        above = torch.bincount(places_above, minlength=num_rows)
        tied = torch.bincount(places_tied, minlength=num_rows)
        self.above[rows] = above.cpu()
        self.tied[rows] = tied.cpu()

        num_top = self.top_scores.shape[1]
        order, ranks = best_first(scores, places, num_rows)
        is_top = ranks < num_top
        top_ranks = ranks[is_top].cpu()

        # the pairs that stand on top, and the captions of the split that they belong to
        top_pairs = order[is_top].cpu()
        top_places = places.cpu()[top_pairs]
        top_rows = rows[top_places]
        self.top_columns[top_rows, top_ranks] = columns.cpu()[top_pairs]
        self.top_scores[top_rows, top_ranks] = scores.cpu()[top_pairs]

    def add_up(self, workers: Workers) -> None:
        """Bring together what the workers counted, each for captions of its own."""
        self.above = workers.add_up(self.above)
        self.tied = workers.add_up(self.tied)
        self.correct_scores = workers.add_up(self.correct_scores)
        self.top_columns = workers.add_up(self.top_columns)
        self.top_scores = workers.add_up(self.top_scores)

    def ranks(self) -> Ranks:
        """The ranking of each caption; a caption whose video is missing ties with itself alone."""
        is_found = self._column >= 0
        above = self.above.masked_fill(~is_found, 0)
        tied = self.tied.masked_fill(~is_found, 1)
        return Ranks(
            above,
            tied,
            tied_right=torch.ones_like(tied),
            is_found=is_found,
            ndcg=expected_gain(above, tied) * is_found,
            candidates=self._truth.num_candidates,
        )


class CaptionCounter:
    """Each video's ranking of the videos' sets of captions, and of all captions.

    A set scores as its best caption. `bounds` Float64[S, V] are the best S scores of each gallery video with
    its own captions, falling; infinite where there are fewer, and for a video that nobody asks for.
    """

    def __init__(self, truth: Truth, correct_scores: Tensor) -> None:
        self._truth = truth
        self._correct_scores = correct_scores
        self._best = best_correct(correct_scores, truth.video)  # Float64[S, M]

        # no score is above infinity, so nothing is counted for a video that nobody asks for
        num_best = len(self._best)
        num_videos = len(truth.gallery)
        is_found = truth.is_found
        unasked = torch.full((num_best, num_videos), torch.inf, dtype=torch.float64)
        self.bounds = unasked.index_copy(
            1,
            truth.column[is_found],
            self._best[:, is_found],
        )

        self._has_several = num_best > 1
        self._set_counts = torch.zeros(2, 1, num_videos, dtype=torch.int64)
        self._caption_counts = torch.zeros(2, num_best, num_videos, dtype=torch.int64)

    def add(self, rows: Tensor, scores: Tensor) -> None:
        """Count a block: `scores` Float[n, V] of all captions of some videos, `rows` Int64[n]."""
        if self._has_several:
            self._caption_counts += count_above_and_equal(scores, self.bounds)

            # the captions of a video stand together in a block: each run of rows becomes its best scores
            videos = self._truth.video[rows]
            _, num_captions = videos.unique(return_counts=True)
            num_captions = num_captions.to(scores.device)
            scores = torch.segment_reduce(scores, "max", lengths=num_captions)

        self._set_counts += count_above_and_equal(scores, self.bounds[:1])

    def add_candidates(self, rows: Tensor, candidates: Candidates) -> None:
        """Count a block as `add` does; the scores left out of it are below all bounds of their video."""
        places, columns, scores = candidates
        if self._has_several:
            self._caption_counts += count_candidates(columns, scores, self.bounds)

            # of the captions of a video only the best counts: one key for each pair of videos
            num_columns = self.bounds.shape[1]
            videos = self._truth.video[rows].to(places.device)
            video_of_score = videos[places]
            keys = video_of_score * num_columns + columns
            keys, group_of_score = keys.unique(return_inverse=True)

            # and the largest score of each key
            lowest = scores.new_full(keys.shape, -torch.inf)
            scores = lowest.scatter_reduce(0, group_of_score, scores, "amax")
            columns = keys % num_columns

        self._set_counts += count_candidates(columns, scores, self.bounds[:1])

    def add_up(self, workers: Workers) -> None:
        """Bring together what the workers counted."""
        self._set_counts = workers.add_up(self._set_counts)
        self._caption_counts = workers.add_up(self._caption_counts)

    def set_ranks(self) -> Ranks:
        """Each video's ranking of the sets of captions."""
        truth = self._truth
        above, tied = per_video(self._set_counts[:, 0], truth)
        return Ranks(
            above,
            tied,
            tied_right=torch.ones_like(tied),
            is_found=truth.is_found,
            ndcg=expected_gain(above, tied) * truth.is_found,
            candidates=truth.num_videos,
        )

    def caption_ranks(self) -> Ranks | None:
        """Each video's ranking of all captions; None where each video has one, as it would be the same."""
        if not self._has_several:
            return None

        truth = self._truth
        num_captions = len(self._correct_scores)
        above, tied = per_video(self._caption_counts, truth)
        gain = gain_of_all(
            above,
            tied,
            self._best,
            self._correct_scores,
            truth.video,
        )

        # several captions of a video may share its best score
        tied_right = num_equal(self._best[0], self._correct_scores, truth.video)
        tied_right = tied_right.masked_fill(~truth.is_found, 1)
        return Ranks(
            above[0],
            tied[0],
            tied_right=tied_right,
            is_found=truth.is_found,
            ndcg=gain * truth.is_found,
            candidates=num_captions,
        )


def count_true(mask: Tensor, dim: int) -> Tensor:
    """Int64: how many of `mask` are true along `dim`; twice as fast as adding up in int64."""
    count = mask.sum(dim, dtype=torch.int32)
    return count.long()


def count_above_and_equal(scores: Tensor, bounds: Tensor) -> Tensor:
    """Int64[2, S, V]: how many of `scores` Float[n, V] are above and equal to `bounds` Float64[S, V]."""
    # bounds are scores that went to fp64 and come back, so they equal themselves to the last bit
    bounds = bounds.to(scores.device, scores.dtype)
    above = []
    equal = []
    for bound in bounds:
        above.append(count_true(scores > bound, dim=0))
        equal.append(count_true(scores == bound, dim=0))

    counts = torch.stack([torch.stack(above), torch.stack(equal)])
    return counts.cpu()


def count_candidates(
    columns: Tensor,
    scores: Tensor,
    bounds: Tensor,
) -> Tensor:
    """Int64[2, S, V]: `count_above_and_equal` of `scores` Float[P], each of a column Int64[P]."""
    bounds = bounds.to(scores.device, scores.dtype)
    num_columns = bounds.shape[1]
    above = []
    equal = []
    for bound in bounds:
        bound_of_score = bound[columns]
        columns_above = columns[scores > bound_of_score]
        columns_equal = columns[scores == bound_of_score]
        above.append(torch.bincount(columns_above, minlength=num_columns))
        equal.append(torch.bincount(columns_equal, minlength=num_columns))

    counts = torch.stack([torch.stack(above), torch.stack(equal)])
    return counts.cpu()


def per_video(counts: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
    """(above, tied) Int64[..., M] of counts Int64[2, ..., V] by column; (0, 1) where a video is missing."""
    column = truth.column.clamp(min=0)
    above, tied = counts[..., column]

    # a missing video was counted against the first column, and ties with itself alone
    is_missing = ~truth.is_found
    above = above.masked_fill(is_missing, 0)
    tied = tied.masked_fill(is_missing, 1)
    return above, tied


def best_correct(correct_scores: Tensor, video: Tensor) -> Tensor:
    """Float64[S, M]: each video's best S scores with its own captions, falling; inf where it has fewer.

    S is NDCG_TOP, or fewer if no video has so many captions: more cannot all be among the first NDCG_TOP.
    """
    num_captions = torch.bincount(video)
    order, place = best_first(correct_scores, video, len(num_captions))
    sorted_scores = correct_scores[order]
    sorted_videos = video[order]

    most_captions = int(num_captions.max())
    num_best = min(NDCG_TOP, most_captions)
    num_videos = len(num_captions)
    best = torch.full((num_best, num_videos), torch.inf, dtype=correct_scores.dtype)

    is_best = place < num_best
    best_place = place[is_best]
    best_video = sorted_videos[is_best]
    best[best_place, best_video] = sorted_scores[is_best]
    return best


def best_first(
    scores: Tensor,
    groups: Tensor,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    """Sorts scores [P] within their groups, Int64[P] below `num_groups`.

    Returns Int64[P], the order in which each group stands together, best first, and Int64[P], the rank in its
    group of each score in that order.
    """
    # by falling score and then, stably, by group
    by_score = scores.argsort(descending=True, stable=True)
    by_group = groups[by_score].argsort(stable=True)
    order = by_score[by_group]

    # the rank in a group is the distance to the place where the group begins
    sizes = torch.bincount(groups, minlength=num_groups)
    first_place = sizes.cumsum(0) - sizes
    place = torch.arange(len(groups), device=groups.device)
    sorted_groups = groups[order]
    ranks = place - first_place[sorted_groups]
    return order, ranks


def num_equal(
    bound: Tensor,
    correct_scores: Tensor,
    video: Tensor,
) -> Tensor:
    """Int64[M]: how many of a video's captions score exactly `bound` Float64[M]."""
    bound_of_caption = bound[video]
    is_equal = correct_scores == bound_of_caption
    num_videos = len(bound)
    count = torch.bincount(video, weights=is_equal.double(), minlength=num_videos)
    return count.long()


def gain_of_all(
    above: Tensor,
    tied: Tensor,
    best: Tensor,
    correct_scores: Tensor,
    video: Tensor,
) -> Tensor:
    """Float64[M]: nDCG where every caption of a video is a right answer.

    above, tied: Int64[S, M], counts of `best` Float64[S, M].
    """
    # an infinite best stands for a caption that the video does not have
    gains = expected_gain(above, tied.clamp(min=1))
    gains = torch.where(best.isfinite(), gains, 0.0)
    listed_gain = gains.sum(dim=0)

    # right captions beyond the S best that tie with the last of these share its places
    num_last = num_equal(best[-1], correct_scores, video)
    num_listed = (best == best[-1]).sum(dim=0)
    num_unlisted = (num_last - num_listed).clamp(min=0)
    unlisted_gain = num_unlisted * gains[-1]

    num_captions = torch.bincount(video).clamp(max=NDCG_TOP)
    ideal = ideal_gains()[num_captions]
    return (listed_gain + unlisted_gain) / ideal


def full_precision(scores: Tensor) -> Tensor:
    """Half precision raised to fp32, in which scores are compared."""
    if scores.dtype in (torch.float16, torch.bfloat16):
        return scores.float()
    return scores


def refuse_infinite(
    similarity: Similarity,
    truth: Truth,
    block: int,
) -> None:
    """Raises MetricError naming the videos, or else the captions, whose similarities are not finite."""
    num_captions = len(truth.video)
    bad_in_row = torch.zeros(num_captions, dtype=torch.int64)
    bad_in_column = torch.zeros(len(truth.gallery), dtype=torch.int64)
    for rows in truth.blocks(block):
        scores = similarity(rows)
        is_bad = ~torch.isfinite(scores).cpu()
        bad_in_row[rows] = is_bad.sum(dim=1)
        bad_in_column += is_bad.sum(dim=0)

    # a video is at fault if all its similarities are bad, a caption if it has bad ones with other videos
    is_bad_column = bad_in_column == num_captions
    bad_columns = is_bad_column.nonzero()[:, 0].tolist()
    is_bad_row = bad_in_row > len(bad_columns)
    bad_rows = is_bad_row.nonzero()[:, 0].tolist()

    culprits = [f"video {truth.gallery[column]}" for column in bad_columns]
    for row in bad_rows:
        video = truth.videos[truth.video[row]]
        culprits.append(f"caption {row} of {video}")
    if not culprits:
        return

    listed = ", ".join(culprits[:MAX_NAMED])
    num_more = len(culprits) - MAX_NAMED
    more = f" and {num_more} more" if num_more > 0 else ""
    raise MetricError(f"similarities are NaN or infinite: {listed}{more}")
