"""Embed a split over the workers, each video and caption once, and measure recall."""

import math
from collections.abc import Callable, Sequence

import pyarrow as pa
import torch
import torch.distributed as dist

from vopcore.config import Evaluate
from vopcore.metrics import dsl, evaluate, published, qb_norm
from vopcore.metrics.predictions import predictions
from vopcore.retriever import Retriever
from vopcore.shards import Shards
from vopcore.training.batches import stack_frames
from vopcore.tuned_model import VideoVectors

CHUNK = 32  # videos, or 8 times as many captions, embedded at once

Tokenize = Callable[[list[str]], torch.Tensor]


class Embedder:
    """Embeds videos and captions with one retriever; with several workers, each does its part.

    `tell(done, total)` hears how many videos this worker has embedded.
    """

    def __init__(
        self,
        retriever: Retriever,
        shards: Shards,
        tokenize: Tokenize,
        frames: int,
        tell: Callable[[int, int], None],
    ) -> None:
        self._retriever, self._shards, self._tokenize = retriever, shards, tokenize
        self._frames, self._tell = frames, tell
        self._device = retriever.mean.device

    def videos(self, videos: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 [V, F, D] and the mask of real frames, bool [V, F]; the same on every worker."""
        return _over_workers(videos, self._embed_videos)

    def texts(self, captions: Sequence[str]) -> torch.Tensor:
        """Float32 [N, D]; the same on every worker."""
        return _over_workers(captions, self._embed_texts)[0]

    def _embed_videos(self, part: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        features, masks = [], []
        for start in range(0, len(part), CHUNK):
            names = part[start : start + CHUNK]
            pixels, mask = stack_frames(self._shards, names, self._frames, [None] * len(names))
            real = None if mask.all() else mask.to(self._device)
            features.append(self._retriever.video(pixels.to(self._device), real).float())
            masks.append(mask.to(self._device))
            self._tell(start + len(names), len(part))
        return torch.cat(features), torch.cat(masks)

    def _embed_texts(self, part: list[str]) -> tuple[torch.Tensor]:
        chunks = [part[start : start + 8 * CHUNK] for start in range(0, len(part), 8 * CHUNK)]
        encode = self._retriever.text
        return (torch.cat([encode(self._tokenize(chunk).to(self._device)).float() for chunk in chunks]),)


@torch.no_grad()
def evaluate_split(
    embedder: Embedder,
    retriever: Retriever,
    shards: Shards,
    split: pa.Table,
    bank: Sequence[str],
    options: Evaluate,
    seed: int,
) -> tuple[dict[str, float], pa.Table, VideoVectors]:
    """Recall of the captions of `split` (rows of ANNOTATIONS) among its decoded videos; PREDICTIONS; and
    those videos.

    A video that is missing or could not be decoded stays in the denominator, at the worst rank. Every
    worker returns the same. `bank`: the training captions that QB-Norm compares with. Post-processed and
    published-script numbers come beside the plain ones, under their own names.
    """
    was_training = retriever.training
    retriever.eval()
    owners, entries = split["video"].to_pylist(), shards.videos
    gallery = [v for v in dict.fromkeys(owners) if v in entries and entries[v].num_frames]
    features, mask = embedder.videos(gallery)
    text = embedder.texts(split["caption"].to_pylist())

    def to_gallery(text: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda rows: retriever.similarity(text[rows.to(text.device)], features, mask).cpu()

    plain = to_gallery(text)
    measured = evaluate(plain, owners, gallery, seed=seed)
    numbers = measured.to_dict()
    for name in options.post_processing:
        changed = (
            dsl(plain, len(owners))
            if name == "dsl"
            else qb_norm(plain, to_gallery(embedder.texts(bank)), len(bank))
        )
        numbers |= evaluate(changed, owners, gallery, post_processing=name, seed=seed).to_dict()
    for name in options.parity:
        numbers |= published(name, plain, owners, gallery)
    retriever.train(was_training)
    kept = VideoVectors(gallery, retriever.vectors(features, mask).cpu().numpy())
    return numbers, predictions(plain, split, gallery, measured.t2v), kept


def _over_workers(
    items: Sequence[str], embed: Callable[[list[str]], tuple[torch.Tensor, ...]]
) -> tuple[torch.Tensor, ...]:
    """Embed every `workers`-th item here and gather what the others embedded, in the order of `items`."""
    if not dist.is_initialized():
        return embed(list(items))
    workers, rank = dist.get_world_size(), dist.get_rank()
    even = workers * math.ceil(len(items) / workers)  # gathering wants equal shapes
    mine = [items[i % len(items)] for i in range(rank, even, workers)]
    whole = []
    for part in embed(mine):
        parts = [torch.empty_like(part) for _ in range(workers)]
        dist.all_gather(parts, part.contiguous())
        whole.append(torch.stack(parts, 1).flatten(0, 1)[: len(items)])
    return tuple(whole)
