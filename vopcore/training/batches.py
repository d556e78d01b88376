"""What a worker trains on: batches of frames and captions, the same for the same seed, wherever it starts.

Everything random is a function of (seed, epoch, video), so a run that continues in the middle of an epoch
sees what an undisturbed one would have seen, and a global batch does not depend on the number of workers.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from vopcore.shards import Shards
from vopcore.training.augment import draw_crop
from vopcore.training.prefix_cache import Prefix
from vopcore.video import choose, stack


@dataclass(frozen=True)
class Batch:
    """One worker's part of a batch: B videos of F frames and a caption each."""

    videos: list[str]
    frames: torch.Tensor  # uint8 [B, F, 3, S, S], or what a `Prefix` holds of them, [B, F, L, D]
    mask: torch.Tensor  # bool [B, F], False where a video has fewer than F frames
    tokens: torch.Tensor  # int64 [B, L]
    crops: torch.Tensor | None = None  # int64 [B, 5], for `augment.crop`

    def pinned(self) -> "Batch":
        """In memory that a GPU copies from while it computes."""
        tensors = (self.frames, self.mask, self.tokens, self.crops)
        return Batch(self.videos, *(None if x is None else x.pin_memory() for x in tensors))

    def parts(self, size: int) -> list["Batch"]:
        """Cut into batches of `size` videos, the last one perhaps of fewer."""
        starts = range(0, len(self.videos), size)
        return [Batch(*(None if x is None else x[i : i + size] for x in vars(self).values())) for i in starts]


def stack_frames(
    shards: Shards | Prefix, videos: list[str], frames: int, rngs: Iterable[np.random.Generator | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the chosen frames of decoded `videos`, and their mask, bool [B, F].

    From shards uint8 [B, F, 3, S, S]; from a prefix [B, F, L, D], bfloat16 or float32.
    """
    looks = []
    for video, rng in zip(videos, rngs, strict=True):
        looks.append(shards.frames(video, choose(shards.num_frames(video), frames, rng)))
    stacked, mask = stack(looks, frames)
    return shards.tensor(stacked), mask


class TrainingBatches:
    """The training split in seeded order, cut into global batches, of which this worker takes its part.

    `captions` maps a video to its captions. With `draw="one"` an epoch holds every video once, with a caption
    drawn anew each epoch; with `"all"` every (video, caption) pair once. No global batch holds a video twice,
    as it would be its own negative, unless `repeat_videos`, as in CLIP4Clip. What does not fill the last
    batch of an epoch waits for another epoch. With `augment` each video of a batch has a crop drawn for it.

    Raises:
        ValueError: fewer videos than a global batch holds.
    """

    def __init__(
        self,
        shards: Shards | Prefix,
        captions: dict[str, list[str]],
        tokenize: Callable[[list[str]], torch.Tensor],
        *,
        frames: int,
        batch_size: int,
        draw: Literal["one", "all"],
        seed: int,
        repeat_videos: bool = False,
        augment: bool = False,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        self._shards, self._captions, self._tokenize = shards, captions, tokenize
        self._videos = sorted(captions)
        self._frames, self._batch_size, self._draw, self._seed = frames, batch_size, draw, seed
        self._augment = augment
        self._part = slice(rank * batch_size // workers, (rank + 1) * batch_size // workers)
        counts = [1 if draw == "one" else len(captions[video]) for video in self._videos]
        pairs = [(v, c) for v, count in enumerate(counts) for c in range(count)]
        self._single = pairs if repeat_videos else None  # pairs that are dealt as if each were a video
        self._counts = [1] * len(pairs) if repeat_videos else counts
        self.steps_per_epoch = num_batches(self._counts, batch_size)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"train.batch_size: {batch_size} is more than the {len(captions)} videos to train on"
            )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This worker's batches of one epoch from step `start` on, read ahead by threads."""
        rng = np.random.default_rng([self._seed, epoch])
        batches = spread(self._counts, self._batch_size, rng)
        if self._single is not None:
            batches = [[self._single[i] for i, _ in batch] for batch in batches]
        return _ahead(partial(self._batch, epoch, pairs[self._part]) for pairs in batches[start:])

    def _batch(self, epoch: int, pairs: list[tuple[int, int]]) -> Batch:
        videos = [self._videos[v] for v, _ in pairs]
        rngs = [np.random.default_rng([self._seed, epoch, v, c]) for v, c in pairs]
        frames, mask = stack_frames(self._shards, videos, self._frames, rngs)
        texts = [self._caption(epoch, v, c) for v, c in pairs]
        crops = self._crops(epoch, pairs, frames.shape[-1]) if self._augment else None
        batch = Batch(videos, frames, mask, self._tokenize(texts), crops)
        return batch.pinned() if torch.cuda.is_available() else batch

    def _crops(self, epoch: int, pairs: list[tuple[int, int]], size: int) -> torch.Tensor:
        rngs = (np.random.default_rng([self._seed, epoch, v, c, 1]) for v, c in pairs)
        return torch.tensor([draw_crop(rng, size) for rng in rngs])

    def _caption(self, epoch: int, v: int, c: int) -> str:
        texts = self._captions[self._videos[v]]
        if self._draw == "one":
            c = int(np.random.default_rng([self._seed, epoch, v]).integers(len(texts)))
        return texts[c]


def num_batches(counts: list[int], size: int) -> int:
    """The most batches of `size` pairs that never hold a video twice.

    The largest k with sum(min(count, k)) >= k size.
    """
    steps = sum(counts) // size
    while sum(min(count, steps) for count in counts) < steps * size:
        steps -= 1
    return steps


def spread(counts: list[int], size: int, rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """Deal each video's pairs to different batches: `num_batches` lists of `size` (video, caption) indices.

    The batches are dealt to in rounds, each in an order of its own; a round gives each batch one pair. Where
    a video's pairs cross into the next round, the batches that hold it already come last there.
    """
    steps = num_batches(counts, size)
    batches: list[list[tuple[int, int]]] = [[] for _ in range(steps)]
    order: list[int] = []
    for v in rng.permutation(len(counts)).tolist():
        holding: set[int] = set()
        for c in rng.permutation(counts[v])[:steps].tolist():
            if not order:
                if len(batches[-1]) == size:
                    return batches
                order = sorted(rng.permutation(steps).tolist(), key=lambda b: b not in holding)
            holding.add(order[-1])
            batches[order.pop()].append((v, c))
    return batches


def _ahead(jobs: Iterable[Callable[[], Batch]]) -> Iterator[Batch]:
    """The jobs' batches in their order, read by threads while the reader is busy with earlier ones."""
    threads = torch.get_num_threads()
    jobs = iter(jobs)
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        ready = deque(pool.submit(job) for job in itertools.islice(jobs, threads + 1))
        try:
            while ready:
                batch = ready.popleft().result()
                ready.extend(pool.submit(job) for job in itertools.islice(jobs, 1))
                yield batch
        finally:
            for future in ready:
                future.cancel()
