"""What a worker trains on: batches of frames and captions, the same for the same seed, wherever it starts.

Everything random is a function of (seed, epoch, video), so a run that continues in the middle of an epoch
sees what an undisturbed one would have seen, and a global batch does not depend on the number of workers.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vopcore.shards import Shards
from vopcore.training.augment import draw_crop
from vopcore.training.prefix_cache import Prefix
from vopcore.video import choose

Tokenize = Callable[[list[str]], Tensor]
Pair = tuple[int, int]  # a video and one of its captions, by number

ANNOUNCED = 8  # batches whose files are asked for before they are read


@dataclass(frozen=True)
class Batch:
    """One worker's part of a batch: B videos of F frames and a caption each."""

    videos: list[str]
    frames: Tensor
    """uint8 [B, F, 3, S, S], or what a `Prefix` holds of them, [B, F, L, D]"""
    mask: Tensor
    """bool [B, F], False where a video has fewer than F frames"""
    tokens: Tensor
    """int64 [B, L]"""
    crops: Tensor | None = None
    """int64 [B, 5], for `augment.crop`"""
    captions: list[str] = field(default_factory=list)
    """The texts of `tokens`."""
    full: bool | None = None
    """Whether every video has F frames, where `mask` is on a GPU and asking it would stop the host."""

    def real_frames(self) -> Tensor | None:
        """The mask, or None if all frames are real: attention without a mask is faster."""
        full = bool(self.mask.all()) if self.full is None else self.full
        return None if full else self.mask

    def parts(self, size: int) -> list["Batch"]:
        """Cut into batches of `size` videos, the last one perhaps of fewer."""
        batches = []
        for start in range(0, len(self.videos), size):
            rows = slice(start, start + size)
            batch = replace(
                self,
                videos=self.videos[rows],
                frames=self.frames[rows],
                mask=self.mask[rows],
                tokens=self.tokens[rows],
                crops=None if self.crops is None else self.crops[rows],
                captions=self.captions[rows],
            )
            batches.append(batch)
        return batches


def stack_frames(
    shards: Shards | Prefix,
    videos: list[str],
    frames: int,
    rngs: Iterable[np.random.Generator | None],
    pin: bool = False,
) -> tuple[Tensor, Tensor]:
    """Read the chosen frames of decoded `videos`, and their mask, bool [B, F].

    From shards uint8 [B, F, 3, S, S]; from a prefix [B, F, L, D], bfloat16 or float32. Each frame is copied
    once, from its shard to its place. pin: into memory that a GPU copies from while it computes.
    """
    mask = np.zeros((len(videos), frames), dtype=bool)
    rows = None
    for row, (video, rng) in enumerate(zip(videos, rngs, strict=True)):
        indices = choose(shards.num_frames(video), frames, rng)
        if rows is None:
            rows = _buffer((len(videos), frames), shards.frames(video, indices[:1]), pin)
        shards.frames(video, indices, out=rows[row, : len(indices)])
        rows[row, len(indices) :] = 0
        mask[row, : len(indices)] = True
    return shards.tensor(rows), torch.from_numpy(mask)


def _buffer(shape: tuple[int, int], like: np.ndarray, pin: bool) -> np.ndarray:
    """Room for `shape` frames of the kind of `like` [1, ...]; not cleared."""
    size = (*shape, *like.shape[1:])
    if not pin:
        return np.empty(size, like.dtype)
    kind = torch.from_numpy(like[:0].copy()).dtype
    return torch.empty(size, dtype=kind, pin_memory=True).numpy()


class Captions:
    """Tokens of captions, made once for a run: tokenising is Python and would hold the lock every epoch."""

    def __init__(self, tokenize: Tokenize) -> None:
        self._tokenize = tokenize
        self._rows: dict[str, np.ndarray] = {}

    def tokens(self, texts: list[str]) -> Tensor:
        """Int64 [N, L]"""
        missing = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if missing:
            for text, row in zip(missing, self._tokenize(missing), strict=True):
                self._rows[text] = row.numpy().astype(np.int32)  # a million captions are kept
        stacked = np.stack([self._rows[text] for text in texts])
        return torch.from_numpy(stacked).long()


class TrainingBatches:
    """The training split in seeded order, cut into global batches, of which this worker takes its part.

    `captions` maps a video to its captions. With `draw="one"` an epoch holds every video once, with a caption
    drawn anew each epoch; with `"all"` every (video, caption) pair once. No global batch holds a video twice,
    as it would be its own negative, unless `repeat_videos`, as in CLIP4Clip. What does not fill the last
    batch of an epoch waits for another epoch. With `augment` each video of a batch has a crop drawn for it;
    with `pin` batches lie in memory that a GPU copies from while it computes.

    Raises:
        ValueError: fewer videos than a global batch holds.
    """

    def __init__(
        self,
        shards: Shards | Prefix,
        captions: dict[str, list[str]],
        tokenize: Tokenize,
        *,
        frames: int,
        batch_size: int,
        draw: Literal["one", "all"],
        seed: int,
        repeat_videos: bool = False,
        augment: bool = False,
        rank: int = 0,
        workers: int = 1,
        pin: bool = False,
    ) -> None:
        self._shards = shards
        self._captions = captions
        self._texts = Captions(tokenize)
        self._videos = sorted(captions)
        self._frames = frames
        self._batch_size = batch_size
        self._draw = draw
        self._seed = seed
        self._augment = augment
        self._pin = pin
        self._rows = slice(rank * batch_size // workers, (rank + 1) * batch_size // workers)

        # How many pairs of each video an epoch holds; with repeat_videos each pair is dealt like a video.
        self._counts = [1 if draw == "one" else len(captions[video]) for video in self._videos]
        self._pairs: list[Pair] | None = None
        if repeat_videos:
            self._pairs = [(v, c) for v, count in enumerate(self._counts) for c in range(count)]
            self._counts = [1] * len(self._pairs)

        self.steps_per_epoch = num_batches(self._counts, batch_size)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"train.batch_size: {batch_size} is more than the {len(captions)} videos to train on"
            )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This worker's batches of one epoch from step `start` on, read ahead by threads."""
        rng = np.random.default_rng([self._seed, epoch])
        batches = spread(self._counts, self._batch_size, rng)
        if self._pairs is not None:
            batches = [[self._pairs[number] for number, _ in batch] for batch in batches]
        parts = [pairs[self._rows] for pairs in batches[start:]]
        return _ahead(partial(self._batch, epoch, pairs) for pairs in self._announced(parts))

    def _announced(self, parts: list[list[Pair]]) -> Iterator[list[Pair]]:
        """The parts in their order; the files of those to come are asked for before they are read."""
        for number, pairs in enumerate(parts):
            coming = parts[:ANNOUNCED] if number == 0 else parts[number + ANNOUNCED - 1 : number + ANNOUNCED]
            for later in coming:
                self._shards.prefetch([self._videos[v] for v, _ in later])
            yield pairs

    def _batch(self, epoch: int, pairs: list[Pair]) -> Batch:
        videos = [self._videos[v] for v, _ in pairs]
        rngs = [np.random.default_rng([self._seed, epoch, v, c]) for v, c in pairs]
        frames, mask = stack_frames(self._shards, videos, self._frames, rngs, self._pin)
        captions = [self._caption(epoch, v, c) for v, c in pairs]
        tokens = self._texts.tokens(captions)
        crops = self._crops(epoch, pairs, frames.shape[-1]) if self._augment else None
        return Batch(videos, frames, mask, tokens, crops, captions)

    def _crops(self, epoch: int, pairs: list[Pair], size: int) -> Tensor:
        rngs = (np.random.default_rng([self._seed, epoch, v, c, 1]) for v, c in pairs)
        return torch.tensor([draw_crop(rng, size) for rng in rngs])

    def _caption(self, epoch: int, v: int, c: int) -> str:
        texts = self._captions[self._videos[v]]
        if self._draw == "one":
            c = int(np.random.default_rng([self._seed, epoch, v]).integers(len(texts)))
        return texts[c]


def num_batches(counts: list[int], size: int) -> int:
    """The most batches of `size` pairs that never hold a video twice.

    The largest k with sum(min(count, k)) >= k size. Where k does, so does every smaller one, as the sum grows
    by less with every step: it is found by halving.
    """
    per_video = np.asarray(counts)
    fewest, most = 0, int(per_video.sum()) // size
    while fewest < most:
        steps = (fewest + most + 1) // 2
        if int(np.minimum(per_video, steps).sum()) >= steps * size:
            fewest = steps
        else:
            most = steps - 1
    return fewest


def spread(counts: list[int], size: int, rng: np.random.Generator) -> list[list[Pair]]:
    """Deal each video's pairs to different batches: `num_batches` lists of `size` (video, caption) indices.

    The batches are dealt to in rounds, each in an order of its own; a round gives each batch one pair. Where
    a video's pairs cross into the next round, the batches that hold it already come last there.
    """
    steps = num_batches(counts, size)
    batches: list[list[Pair]] = [[] for _ in range(steps)]
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
