"""Recall both ways from blocks of similarities: exact, in fp32, without the whole matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from vopcore.metrics import names
from vopcore.metrics.bootstrap import interval
from vopcore.metrics.count import (
    BLOCK,
    Candidates,
    CaptionCounter,
    Similarity,
    VideoCounter,
    full_precision,
    refuse_infinite,
)
from vopcore.metrics.ranks import Ranks
from vopcore.metrics.top import TopScores
from vopcore.metrics.truth import Truth
from vopcore.metrics.workers import Workers

ALONE = Workers()


@dataclass(frozen=True)
class Metrics:
    """The result of `evaluate`.

    t2v: a query per caption, in the order given.
    v2t: a query per video; a video's captions are one candidate, with the score of the best (CLIP4Clip's
    rule).
    v2t_all: a query per video, ranked among all captions, where its first own one counts; None where each
    video has one caption, as it would be the same as `v2t`.
    videos: the ids of the v2t queries, in the order of their first caption.
    intervals: the 95% interval of R@1 by direction; empty where none was asked for.
    top: the videos that score best for each caption, as many as were asked for.
    """

    t2v: Ranks
    v2t: Ranks
    v2t_all: Ranks | None
    videos: list[str]
    counts: dict[str, int]
    top: TopScores
    post_processing: str = "none"
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, float]:
        """Flat names that MLflow takes; recall, Rsum and nDCG10 in percent.

        t2v/R1, R5, R10, R50, Rsum (R1 + R5 + R10), MdR, MnR, nDCG10, ties, R1_pessimistic, R1_optimistic
        (ties lost, won), R1_low, R1_high (95% interval); the same under v2t/ and, where videos have several
        captions, v2t_all/; Rsum (t2v/Rsum + v2t/Rsum); queries/found, queries/expected, gallery/found,
        gallery/expected. Post-processed numbers stand under their own name: dsl/t2v/R1.
        """
        numbers = {}
        for direction, ranks in self.directions().items():
            for name, value in ranks.summary().items():
                numbers[names.of(direction, name)] = value

        for direction, (low, high) in self.intervals.items():
            numbers[names.low(names.of(direction, "R1"))] = low
            numbers[names.high(names.of(direction, "R1"))] = high

        t2v_sum = numbers[names.of(names.T2V, names.RSUM)]
        v2t_sum = numbers[names.of(names.V2T, names.RSUM)]
        numbers[names.RSUM] = t2v_sum + v2t_sum
        for name, count in self.counts.items():
            numbers[name] = float(count)

        if self.post_processing == "none":
            return numbers
        return {f"{self.post_processing}/{name}": value for name, value in numbers.items()}

    def directions(self) -> dict[str, Ranks]:
        """The rankings that there are, by the name of their direction."""
        named = {names.T2V: self.t2v, names.V2T: self.v2t}
        if self.v2t_all is not None:
            named[names.V2T_ALL] = self.v2t_all
        return named


class BoundedSimilarity(Protocol):
    """Similarities that can be proven too small to count, such as `two_stage.TwoStage`."""

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Float32[P]: the scores of pairs of a caption and a gallery column, Int64[P] each."""

    def block(
        self,
        rows: Tensor,
        row_floor: Tensor,
        column_floor: Tensor,
        num_top: int,
    ) -> Candidates:
        """The scores of captions `rows` Int64[n], except some that are below the `row_floor` Float[n] of
        their caption, the `column_floor` Float[V] of their video and `num_top` scores of the same caption."""


def evaluate(
    similarity: Similarity,
    captions: Sequence[str],
    gallery: Sequence[str],
    *,
    post_processing: str = "none",
    seed: int = 0,
    block: int = BLOCK,
    num_top: int = 0,
    with_intervals: bool = True,
    workers: Workers = ALONE,
    bounded: BoundedSimilarity | None = None,
) -> Metrics:
    """Recall of a split's captions among the videos that were found, and of the videos among the captions.

    similarity: a function from numbers of captions, Int64[n], to their similarities to the gallery,
        Float[n, V], on any device; asked twice for each block of captions, and must give the same bits then.
        With normalised embeddings: `lambda rows: text[rows] @ video.T`.
    captions: [N], the video id of each caption of the split, whether the video was found or not.
    gallery: [V], the ids of the videos that were found and embedded, in the order of `similarity`'s columns.
    post_processing: the name of what `similarity` went through ("dsl", "qb_norm"), put before all names.
    seed: of the bootstrap. block: how many similarities to hold at a time.
    num_top: how many best videos of each caption to keep. with_intervals: whether to draw the bootstrap.
    workers: processes that call this together, each counting a share of the blocks; all get the whole result.
    bounded: the same similarities, where most can be proven not to count; then each block is asked for once.

    A caption whose video is not in the gallery stays in the denominator: never a hit, ranked last. So does
    that video as a query, while its captions remain candidates for the others. Half precision is raised to
    fp32. Memory is one block and some numbers per caption; time is linear in N x V. Raises MetricError if a
    similarity is NaN or infinite, naming videos or captions, and if no video was found.
    """
    truth = Truth.of(captions, gallery)
    by_caption = VideoCounter(truth, num_top)
    if bounded is None:
        by_video = _count_all(
            similarity,
            truth,
            by_caption,
            block,
            workers,
        )
    else:
        by_video = _count_bounded(
            bounded,
            truth,
            by_caption,
            block,
            workers,
        )

    # a query is a caption here, found if its video is in the gallery
    t2v = by_caption.ranks()
    num_queries_found = int(t2v.is_found.sum())
    metrics = Metrics(
        t2v=t2v,
        v2t=by_video.set_ranks(),
        v2t_all=by_video.caption_ranks(),
        videos=truth.videos,
        counts={
            names.QUERIES_FOUND: num_queries_found,
            names.QUERIES_EXPECTED: len(captions),
            names.GALLERY_FOUND: len(gallery),
            names.GALLERY_EXPECTED: truth.num_candidates,
        },
        top=TopScores(by_caption.top_columns, by_caption.top_scores),
        post_processing=post_processing,
    )
    if with_intervals:
        every_video = torch.arange(truth.num_videos)
        for direction, ranks in metrics.directions().items():
            videos = truth.video if direction == names.T2V else every_video
            metrics.intervals[direction] = interval(ranks.hits(1), videos, seed)
    return metrics


def _count_all(
    similarity: Similarity,
    truth: Truth,
    by_caption: VideoCounter,
    block: int,
    workers: Workers,
) -> CaptionCounter:
    """Two passes over all similarities: the second compares with the right scores of the first."""
    blocks = workers.share(truth.blocks(block))
    num_infinite = torch.zeros(1, dtype=torch.int64)
    for rows in blocks:
        scores = full_precision(similarity(rows))
        num_infinite += not torch.isfinite(scores.sum())
        by_caption.add(rows, scores)

    # workers decide together, or one would wait for another that has stopped
    if workers.add_up(num_infinite).item():
        refuse_infinite(similarity, truth, block)
    by_caption.add_up(workers)

    by_video = CaptionCounter(truth, _correct_scores(by_caption, truth))
    for rows in blocks:
        by_video.add(rows, full_precision(similarity(rows)))
    by_video.add_up(workers)
    return by_video


def _count_bounded(
    bounded: BoundedSimilarity,
    truth: Truth,
    by_caption: VideoCounter,
    block: int,
    workers: Workers,
) -> CaptionCounter:
    """One pass: the right scores first, pair by pair, then the scores that can stand above one of them."""
    column = truth.column[truth.video]
    decoded_rows = (column >= 0).nonzero()[:, 0]
    exact = bounded.pairs(decoded_rows, column[decoded_rows])
    correct_scores = torch.zeros(len(column), dtype=torch.float64)
    correct_scores[decoded_rows] = exact.double().cpu()

    by_video = CaptionCounter(truth, correct_scores)
    # where the video is missing no score matters to the caption
    row_floor = correct_scores.masked_fill(column < 0, torch.inf)
    column_floor = by_video.bounds.amin(dim=0)
    num_top = by_caption.top_scores.shape[1]
    for rows in workers.share(truth.blocks(block)):
        candidates = bounded.block(rows, row_floor[rows], column_floor, num_top)

        # a right score is the same number here as in the floors, whatever it was computed beside
        places, columns, scores = candidates
        device = scores.device
        right_scores = correct_scores[rows].to(device, scores.dtype)
        right_columns = column[rows].to(device)
        is_right = columns == right_columns[places]
        scores = torch.where(is_right, right_scores[places], scores)

        candidates = Candidates(places, columns, scores)
        by_caption.add_candidates(rows, candidates, right_scores)
        by_video.add_candidates(rows, candidates)

    by_caption.add_up(workers)
    by_video.add_up(workers)
    return by_video


def _correct_scores(by_caption: VideoCounter, truth: Truth) -> Tensor:
    """Float64[N]: 0 for captions whose video is missing, which no video is compared with."""
    is_missing = truth.column[truth.video] < 0
    return by_caption.correct_scores.masked_fill(is_missing, 0.0)
