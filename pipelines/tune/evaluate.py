"""Embed a split over the workers, each video and caption once, and measure recall together."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from torch import Tensor

from vopcore.config import Evaluate
from vopcore.embedder import Embedder, Tell, Tokenize
from vopcore.index.moments import Span, refine
from vopcore.metrics import Metrics, TwoStage, Workers, dsl, evaluate, published, qb_norm
from vopcore.metrics.moments import PredictedSpan, best_overlap, moment_numbers
from vopcore.metrics.predictions import TOP, predictions
from vopcore.retriever import TEMPERATURE, Retriever
from vopcore.shards import Shards
from vopcore.training.batches import stack_frames
from vopcore.tuned_model import VideoVectors
from vopcore.video import choose


@dataclass(frozen=True)
class SplitResult:
    """What was measured on a split."""

    numbers: dict[str, float]
    predictions: pa.Table  # PREDICTIONS
    videos: VideoVectors  # the split's decoded videos


class SplitEvaluator:
    """Measures splits with one retriever; with several workers, each embeds and ranks its share.

    frames: how many of a video the retriever sees. `tell(embedded, total)` hears of this worker's videos.
    """

    def __init__(
        self,
        retriever: Retriever,
        shards: Shards,
        tokenize: Tokenize,
        frames: int,
        tell: Tell,
    ) -> None:
        self._retriever = retriever
        self._shards = shards
        self._embedder = Embedder(retriever, tokenize)
        self._frames = frames
        self._tell = tell
        self._device = retriever.mean.device

    @torch.no_grad()
    def measure(
        self,
        split: pa.Table,
        bank: Sequence[str],
        options: Evaluate,
        seed: int,
    ) -> SplitResult:
        """Recall of the captions of `split` (rows of ANNOTATIONS) among its decoded videos; PREDICTIONS; and
        those videos.

        A video that is missing or could not be decoded stays in the denominator, at the worst rank. Every
        worker returns the same. `bank`: the training captions that QB-Norm compares with. Post-processed and
        published-script numbers come beside the plain ones, under their own names.
        """
        with evaluation_mode(self._retriever):
            ranking = self._embed(split)
            metrics = self._plain(ranking, seed, num_top=TOP)
            numbers = metrics.to_dict()

            for name in options.post_processing:
                similarity = self._post_processed(name, ranking, bank)
                processed = self._evaluate(
                    similarity,
                    ranking,
                    seed,
                    post_processing=name,
                )
                numbers |= processed.to_dict()
            for script in options.parity:
                numbers |= published(
                    script,
                    ranking.similarity,
                    ranking.owners,
                    ranking.gallery,
                )
            if options.moments:
                overlaps = self._moment_overlaps(split)
                numbers |= moment_numbers(overlaps)

        vectors = ranking.vectors.cpu().numpy()
        return SplitResult(
            numbers=numbers,
            predictions=predictions(split, ranking.gallery, metrics),
            videos=VideoVectors(ranking.gallery, vectors),
        )

    @torch.no_grad()
    def recall(self, split: pa.Table) -> dict[str, float]:
        """The plain numbers alone, without intervals: for a curve while a method is tuned."""
        with evaluation_mode(self._retriever):
            ranking = self._embed(split)
            metrics = self._plain(ranking, seed=0, with_intervals=False)
        return metrics.to_dict()

    def _embed(self, split: pa.Table) -> "EmbeddedSplit":
        """The vectors of a split's captions and of its decoded videos, on every worker."""
        videos = split["video"].unique()
        gallery = videos.filter(pc.is_in(videos, self._shards.decoded())).to_pylist()

        def embed_videos(share: list[str]) -> Tensor:
            return self._embedder.videos(share, self._read_frames, self._tell)

        vectors = over_workers(gallery, embed_videos)
        captions = split["caption"].to_pylist()
        text = over_workers(captions, self._embedder.texts)
        return EmbeddedSplit(
            split["video"].to_pylist(),
            gallery,
            text,
            vectors,
            self._retriever,
        )

    def _is_decoded(self, video: str) -> bool:
        entry = self._shards.videos.get(video)
        return entry is not None and entry.num_frames > 0

    def _moment_overlaps(self, split: pa.Table) -> list[float]:
        """For each sentence of the split that has a time, how far the span found for it in its own video
        overlaps the true one; 0 where the video could not be decoded.
        """
        is_timed = pc.is_valid(split["sentences"])
        timed = split.filter(is_timed).select(["video", "sentences"]).to_pylist()
        num_sentences = sum(len(row["sentences"]) for row in timed)

        # each worker fills in its share, and zeros make the sum the whole
        workers = workers_on(self._device)
        overlaps = torch.zeros(num_sentences, dtype=torch.float64)
        start = 0
        for number, row in enumerate(timed):
            sentences = row["sentences"]
            end = start + len(sentences)
            if number % workers.count == workers.rank:
                overlaps_of_row = self._overlaps_in(row["video"], sentences)
                overlaps[start:end] = torch.tensor(overlaps_of_row, dtype=torch.float64)
            start = end
        return workers.add_up(overlaps).tolist()

    def _overlaps_in(self, video: str, sentences: list[dict[str, Any]]) -> list[float]:
        """The overlap of each sentence's span in one video, from the cosines of its frames."""
        if not self._is_decoded(video):
            return [0.0] * len(sentences)
        scores = self._cosines_in(
            video,
            [sentence["sentence"] for sentence in sentences],
        )

        # the frames that were embedded, and when each is shown
        entry = self._shards.videos[video]
        chosen = choose(entry.num_frames, self._frames, None)
        times = np.array(entry.times)[chosen]

        # what was decoded, in seconds of the file
        start = entry.start or 0.0
        end = entry.duration or float(times[-1])
        if entry.end:
            end = min(entry.end, end)
        whole = Span(start, end)

        overlaps = []
        for sentence, frame_scores in zip(sentences, scores, strict=True):
            mean_score = float(frame_scores.mean())
            best_score = float(frame_scores.max())
            span, _ = refine(times, frame_scores, mean_score, whole, whole)
            predicted = PredictedSpan(span.start, span.end, best_score)
            overlaps.append(
                best_overlap(
                    [predicted],
                    sentence["start"],
                    sentence["end"],
                )
            )
        return overlaps

    def _cosines_in(self, video: str, sentences: list[str]) -> np.ndarray:
        """Float32[S, F]: the cosine of each sentence and each frame of one video."""
        features, mask = self._embedder.frames([video], self._read_frames)
        frames = features[0][mask[0]]
        text = self._embedder.texts(sentences)

        frames = torch.nn.functional.normalize(frames, dim=-1)
        text = torch.nn.functional.normalize(text, dim=-1)
        return (text @ frames.T).cpu().numpy()

    def _read_frames(self, videos: list[str]) -> tuple[Tensor, Tensor]:
        # none: the middle frame of each segment, the same each time
        rngs = [None] * len(videos)
        return stack_frames(self._shards, videos, self._frames, rngs)

    def _plain(
        self,
        ranking: "EmbeddedSplit",
        seed: int,
        num_top: int = 0,
        with_intervals: bool = True,
    ) -> Metrics:
        """The numbers without post-processing, in two stages where frames are weighed by each caption."""
        bounded = None
        weighs_frames = self._retriever.pooling == "query_aware"

        # where it does not fit, some score is no number, and `evaluate` names its video
        if weighs_frames and TwoStage.fits(ranking.text, ranking.vectors):
            bounded = TwoStage(ranking.text, ranking.vectors, TEMPERATURE)

        return self._evaluate(
            ranking.similarity,
            ranking,
            seed,
            num_top=num_top,
            with_intervals=with_intervals,
            bounded=bounded,
        )

    def _evaluate(
        self,
        similarity: Callable[[Tensor], Tensor],
        ranking: "EmbeddedSplit",
        seed: int,
        **options: Any,  # noqa: ANN401 - those of `evaluate`
    ) -> Metrics:
        workers = workers_on(self._device)
        return evaluate(
            similarity,
            ranking.owners,
            ranking.gallery,
            seed=seed,
            workers=workers,
            **options,
        )

    def _post_processed(
        self,
        name: str,
        ranking: "EmbeddedSplit",
        bank: Sequence[str],
    ) -> Callable[[Tensor], Tensor]:
        if name == "dsl":
            return dsl(ranking.similarity, len(ranking.owners))
        if not bank:
            raise ValueError("evaluate.post_processing: qb_norm needs captions of the training split")

        bank_text = over_workers(bank, self._embedder.texts)
        bank_ranking = EmbeddedSplit(
            [],
            ranking.gallery,
            bank_text,
            ranking.vectors,
            self._retriever,
        )
        return qb_norm(ranking.similarity, bank_ranking.similarity, len(bank))


@dataclass(frozen=True)
class EmbeddedSplit:
    """Captions and the gallery they are compared with, as vectors."""

    owners: list[str]  # [N], each caption's video
    gallery: list[str]  # [V]
    text: Tensor  # Float32[N, D]
    vectors: Tensor  # Retriever.vectors of the gallery: Float32[V, D], or [V, F, D]
    retriever: Retriever

    def similarity(self, rows: Tensor) -> Tensor:
        """rows Int64[n] -> Float32[n, V] on the device of the vectors."""
        rows = rows.to(self.text.device)
        return self.retriever.rank(self.text[rows], self.vectors)


@contextmanager
def evaluation_mode(retriever: Retriever) -> Iterator[None]:
    """Nothing of the retriever drops out meanwhile; afterwards it is in the mode that it was in."""
    was_training = retriever.training
    retriever.eval()
    try:
        yield
    finally:
        retriever.train(was_training)


def workers_on(device: torch.device) -> Workers:
    """The workers of this run; sums between GPUs go over GPUs."""
    if not dist.is_initialized():
        return Workers()

    def add_up(counts: Tensor) -> Tensor:
        if counts.numel() == 0:
            return counts
        total = counts.to(device, copy=True)
        dist.all_reduce(total)
        return total.cpu()

    return Workers(dist.get_rank(), dist.get_world_size(), add_up)


def over_workers(items: Sequence[str], embed: Callable[[list[str]], Tensor]) -> Tensor:
    """`embed` a share of the items here and gather what the others embedded: a row per item, in order."""
    if not dist.is_initialized() or not items:
        return embed(list(items))

    workers = dist.get_world_size()
    per_worker = math.ceil(len(items) / workers)
    first = dist.get_rank() * per_worker

    # gathering wants equal shapes: the last share is filled up with items from the beginning
    numbers = range(first, first + per_worker)
    share = [items[number % len(items)] for number in numbers]
    vectors = embed(share)

    # the slices are views, so gathering fills the whole
    gathered = vectors.new_empty(workers * per_worker, *vectors.shape[1:])
    slices = list(gathered.split(per_worker))
    dist.all_gather(slices, vectors.contiguous())
    return gathered[: len(items)]
