"""Embed a split over the workers, each video and caption once, and measure recall."""

from collections.abc import Callable, Sequence

import pyarrow as pa
import torch
import torch.distributed as dist

from vopcore.batches import stack_frames
from vopcore.metrics import Metrics, evaluate
from vopcore.retriever import Retriever
from vopcore.shards import Shards

CHUNK = 32  # videos, or 8 times as many captions, embedded at once


def evaluate_split(
    retriever: Retriever,
    shards: Shards,
    split: pa.Table,
    tokenize: Callable[[list[str]], torch.Tensor],
    *,
    frames: int,
    seed: int,
    step: Callable[[int, int], None],
) -> Metrics:
    """Recall of the captions of `split` (rows of ANNOTATIONS) among its decoded videos, on every worker.

    A video that is missing or could not be decoded stays in the denominator, at the worst rank.
    `step(done, total)` is told how many videos this worker has embedded.
    """
    device = next(retriever.parameters()).device
    captions, videos = split["caption"].to_pylist(), split["video"].to_pylist()
    entries = shards.videos
    gallery = [v for v in dict.fromkeys(videos) if v in entries and entries[v].num_frames]

    def embed_videos(part: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        features, masks = [], []
        for start in range(0, len(part), CHUNK):
            names = part[start : start + CHUNK]
            pixels, mask = stack_frames(shards, names, frames, [None] * len(names))
            features.append(retriever.video(pixels.to(device), mask.to(device)).float().cpu())
            masks.append(mask)
            step(start + len(names), len(part))
        return torch.cat(features), torch.cat(masks)

    def embed_texts(part: list[str]) -> torch.Tensor:
        chunks = [part[start : start + 8 * CHUNK] for start in range(0, len(part), 8 * CHUNK)]
        return torch.cat([retriever.text(tokenize(chunk).to(device)).float().cpu() for chunk in chunks])

    was_training = retriever.training
    retriever.eval()
    with torch.no_grad():
        features, mask = _over_workers(gallery, embed_videos)
        (text,) = _over_workers(captions, lambda part: (embed_texts(part),))

        def similarity(rows: torch.Tensor) -> torch.Tensor:
            return retriever.similarity(text[rows], features, mask)

        metrics = evaluate(similarity, videos, gallery, seed=seed)
    retriever.train(was_training)
    return metrics


def _over_workers(
    items: Sequence[str], embed: Callable[[list[str]], tuple[torch.Tensor, ...]]
) -> tuple[torch.Tensor, ...]:
    """Embed every `workers`-th item here and gather what the others embedded, in the order of `items`."""
    if not dist.is_initialized():
        return embed(list(items))
    workers, rank = dist.get_world_size(), dist.get_rank()
    padded = [items[i % len(items)] for i in range(len(items) + -len(items) % workers)]  # equal shapes
    whole = []
    for mine in embed(padded[rank::workers]):
        mine = mine.cuda() if dist.get_backend() == "nccl" else mine
        parts = [torch.empty_like(mine) for _ in range(workers)]
        dist.all_gather(parts, mine.contiguous())
        whole.append(torch.stack(parts, 1).flatten(0, 1)[: len(items)].cpu())
    return tuple(whole)
