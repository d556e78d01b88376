"""Recall both ways from blocks of similarities: exact, in fp32, without the whole matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from vopcore.metrics.bootstrap import interval
from vopcore.metrics.count import BLOCK, Similarity, Truth, rank_captions, rank_videos
from vopcore.metrics.ranks import Ranks


@dataclass(frozen=True)
class Metrics:
    """The result of `evaluate`.

    t2v: a query per caption, in the order given.
    v2t: a query per video; a video's captions are one candidate, with the score of the best (CLIP4Clip's
    rule). v2t_all: a query per video, ranked among all captions, where its first own one counts; None where
    each video has
        one caption, as it would be the same as `v2t`.
    videos: the ids of the v2t queries, in the order of their first caption.
    """

    t2v: Ranks
    v2t: Ranks
    v2t_all: Ranks | None
    videos: list[str]
    counts: dict[str, int]
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
            numbers |= {f"{direction}/{name}": value for name, value in ranks.summary().items()}
            numbers[f"{direction}/R1_low"], numbers[f"{direction}/R1_high"] = self.intervals[direction]
        numbers["Rsum"] = numbers["t2v/Rsum"] + numbers["v2t/Rsum"]
        numbers |= {name: float(count) for name, count in self.counts.items()}
        prefix = "" if self.post_processing == "none" else f"{self.post_processing}/"
        return {prefix + name: value for name, value in numbers.items()}

    def directions(self) -> dict[str, Ranks]:
        named = {"t2v": self.t2v, "v2t": self.v2t, "v2t_all": self.v2t_all}
        return {name: ranks for name, ranks in named.items() if ranks is not None}


def evaluate(
    similarity: Similarity,
    captions: Sequence[str],
    gallery: Sequence[str],
    *,
    post_processing: str = "none",
    seed: int = 0,
    block: int = BLOCK,
) -> Metrics:
    """Recall of a split's captions among the videos that were found, and of the videos among the captions.

    similarity: a function from numbers of captions, Int64[n], to their similarities to the gallery,
    Float[n, V];
        asked twice for each block of captions, and must give the same bits then. With normalised embeddings:
        `lambda rows: text[rows] @ video.T`.
    captions: [N], the video id of each caption of the split, whether the video was found or not.
    gallery: [V], the ids of the videos that were found and embedded, in the order of `similarity`'s columns.
    post_processing: the name of what `similarity` went through ("dsl", "qb_norm"), put before all names.
    seed: of the bootstrap. block: how many similarities to hold at a time.

    A caption whose video is not in the gallery stays in the denominator: never a hit, ranked last. So does
    that video as a query, while its captions remain candidates for the others. Half precision is raised to
    fp32. Memory is one block and some numbers per caption; time is linear in N x V. Raises MetricError if a
    similarity is NaN or infinite, naming videos or captions, and if no video was found.
    """
    truth = Truth.of(captions, gallery)
    t2v, own = rank_videos(similarity, truth, block)
    v2t, v2t_all = rank_captions(similarity, truth, own, block)
    metrics = Metrics(
        t2v=t2v,
        v2t=v2t,
        v2t_all=v2t_all,
        videos=truth.videos,
        counts={
            "queries/found": int(t2v.found.sum()),
            "queries/expected": len(captions),
            "gallery/found": len(gallery),
            "gallery/expected": truth.num_candidates,
        },
        post_processing=post_processing,
    )
    every_video = torch.arange(truth.num_videos)
    for direction, ranks in metrics.directions().items():
        videos = truth.video if direction == "t2v" else every_video
        metrics.intervals[direction] = interval(ranks.hits(1), videos, seed)
    return metrics
