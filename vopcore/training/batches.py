"""What a worker trains on: batches of frames and captions, the same for the same seed, wherever it starts.

Everything random is a function of (seed, epoch, video), so a run that continues in the middle of an epoch
sees what an undisturbed one would have seen, and a global batch does not depend on the number of workers.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
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

Pair = tuple[int, int]
"""A video and one of its captions, by number."""

# Batches whose files are asked for before they are read.
ANNOUNCED = 8


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
        full = self.full
        if full is None:
            full = bool(self.mask.all())
        return None if full else self.mask

    def micro_batches(self, size: int) -> list["Batch"]:
        """Cut into batches of `size` videos, the last one perhaps of fewer."""
        batches = []
        for start in range(0, len(self.videos), size):
            rows = slice(start, start + size)
            crops = None if self.crops is None else self.crops[rows]
            batch = replace(
                self,
                videos=self.videos[rows],
                frames=self.frames[rows],
                mask=self.mask[rows],
                tokens=self.tokens[rows],
                crops=crops,
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
    batch_shape = (len(videos), frames)
    mask = np.zeros(batch_shape, dtype=bool)
    rows: np.ndarray | None = None

    for row, (video, rng) in enumerate(zip(videos, rngs, strict=True)):
        indices = choose(shards.num_frames(video), frames, rng)
        count = len(indices)

        # The first frame tells shape and dtype of all.
        if rows is None:
            example = shards.frames(video, indices[:1])
            rows = _buffer(batch_shape, example, pin)

        shards.frames(
            video,
            indices,
            out=rows[row, :count],
        )
        rows[row, count:] = 0
        mask[row, :count] = True

    if rows is None:
        raise ValueError("no videos to read frames of")
    return shards.tensor(rows), torch.from_numpy(mask)


def _buffer(
    shape: tuple[int, int],
    like: np.ndarray,
    pin: bool,
) -> np.ndarray:
    """Room for `shape` frames of the kind of `like` [1, ...]; not cleared."""
    size = (*shape, *like.shape[1:])
    if not pin:
        return np.empty(size, like.dtype)

    # Only torch can pin: its dtype is that of a tensor made from nothing.
    dtype = torch.from_numpy(like[:0].copy()).dtype
    pinned = torch.empty(
        size,
        dtype=dtype,
        pin_memory=True,
    )
    return pinned.numpy()


class Captions:
    """Tokens of captions, made once for a run: tokenising is Python and would hold the lock every epoch."""

    def __init__(self, tokenize: Tokenize) -> None:
        self._tokenize = tokenize
        self._rows: dict[str, np.ndarray] = {}

    def tokens(self, texts: list[str]) -> Tensor:
        """Int64 [N, L]"""
        missing = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if missing:
            tokens = self._tokenize(missing)
            for text, row in zip(missing, tokens, strict=True):
                # A million captions may be remembered: half of int64 is enough.
                self._rows[text] = row.numpy().astype(np.int32)

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

        # This worker's rows of a global batch; sizes differ by one where they do not divide.
        first_row = rank * batch_size // workers
        next_row = (rank + 1) * batch_size // workers
        self._rows = slice(first_row, next_row)

        # How many pairs of each video an epoch holds.
        if draw == "one":
            self._counts = [1] * len(self._videos)
        else:
            self._counts = [len(captions[video]) for video in self._videos]

        # With repeat_videos each pair is dealt like a video.
        self._pairs: list[Pair] | None = None
        if repeat_videos:
            self._pairs = _all_pairs(self._counts)
            self._counts = [1] * len(self._pairs)

        self.steps_per_epoch = num_batches(self._counts, batch_size)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"train.batch_size: {batch_size} is more than the {len(captions)} videos to train on"
            )

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """This worker's batches of one epoch from step `start` on, read ahead by threads."""
        return self.epochs(epoch, epoch + 1, start)

    def epochs(
        self,
        first: int,
        stop: int,
        start: int = 0,
    ) -> Generator[Batch]:
        """This worker's batches from step `start` of epoch `first` to the end of the epoch before `stop`.

        Threads read ahead, also over the end of an epoch: the first batch of the next one is ready then.
        """
        dealt = self._announced(self._dealt(first, stop, start))
        jobs = (partial(self._batch, epoch, pairs) for epoch, pairs in dealt)
        return _ahead(jobs)

    def _dealt(
        self,
        first: int,
        stop: int,
        start: int,
    ) -> Iterator[tuple[int, list[Pair]]]:
        """Epoch and pairs of this worker's batches."""
        for epoch in range(first, stop):
            batches = spread(self._counts, self._batch_size, self._rng(epoch))
            if self._pairs is not None:
                batches = [self._pairs_of(batch) for batch in batches]

            next_step = start if epoch == first else 0
            for pairs in batches[next_step:]:
                yield epoch, pairs[self._rows]

    def _rng(self, *numbers: int) -> np.random.Generator:
        """A generator that depends on the run's seed and these numbers alone."""
        return np.random.default_rng([self._seed, *numbers])

    def _pairs_of(self, batch: list[Pair]) -> list[Pair]:
        """The pairs that were dealt like videos, by their numbers."""
        assert self._pairs is not None
        return [self._pairs[number] for number, _ in batch]

    def _announced(self, dealt: Iterator[tuple[int, list[Pair]]]) -> Iterator[tuple[int, list[Pair]]]:
        """The same in their order; the files of those to come are asked for before they are read."""
        announced: deque[tuple[int, list[Pair]]] = deque()
        for epoch, pairs in dealt:
            self._announce(pairs)
            announced.append((epoch, pairs))
            if len(announced) == ANNOUNCED:
                yield announced.popleft()
        yield from announced

    def _announce(self, pairs: list[Pair]) -> None:
        videos = [self._videos[v] for v, _ in pairs]
        self._shards.prefetch(videos)

    def _batch(self, epoch: int, pairs: list[Pair]) -> Batch:
        videos = [self._videos[v] for v, _ in pairs]
        captions = [self._caption(epoch, v, c) for v, c in pairs]
        tokens = self._texts.tokens(captions)

        rngs = [self._rng(epoch, v, c) for v, c in pairs]
        frames, mask = stack_frames(
            self._shards,
            videos,
            self._frames,
            rngs,
            self._pin,
        )

        crops = None
        if self._augment:
            crops = self._crops(epoch, pairs, frames.shape[-1])

        return Batch(
            videos=videos,
            frames=frames,
            mask=mask,
            tokens=tokens,
            crops=crops,
            captions=captions,
        )

    def _crops(
        self,
        epoch: int,
        pairs: list[Pair],
        size: int,
    ) -> Tensor:
        crops = []
        for v, c in pairs:
            # The 1 sets these numbers apart from those that choose the frames.
            rng = self._rng(epoch, v, c, 1)
            crops.append(draw_crop(rng, size))
        return torch.tensor(crops)

    def _caption(
        self,
        epoch: int,
        v: int,
        c: int,
    ) -> str:
        texts = self._captions[self._videos[v]]
        if self._draw == "one":
            rng = self._rng(epoch, v)
            c = int(rng.integers(len(texts)))
        return texts[c]


def _all_pairs(counts: list[int]) -> list[Pair]:
    """Every caption of every video, by number."""
    pairs = []
    for v, count in enumerate(counts):
        for c in range(count):
            pairs.append((v, c))
    return pairs


def num_batches(counts: list[int], size: int) -> int:
    """The most batches of `size` pairs that never hold a video twice.

    That is the largest k with sum(min(count, k)) >= k size. If k batches can be filled, so can fewer: each
    batch more asks for `size` pairs and adds at most as many as the one before it. So k is found by halving.
    """
    per_video = np.asarray(counts)
    fewest = 0
    most = int(per_video.sum()) // size
    while fewest < most:
        steps = (fewest + most + 1) // 2
        pairs = int(np.minimum(per_video, steps).sum())
        if pairs >= steps * size:
            fewest = steps
        else:
            most = steps - 1
    return fewest


def spread(
    counts: list[int],
    size: int,
    rng: np.random.Generator,
) -> list[list[Pair]]:
    """Deal each video's pairs to different batches: `num_batches` lists of `size` (video, caption) indices.

    The batches are dealt to in rounds, each in a new order; a round gives each batch one pair. Where a video
    has pairs left for the next round, the batches that hold it already come last there.
    """
    steps = num_batches(counts, size)
    batches: list[list[Pair]] = [[] for _ in range(steps)]
    order: list[int] = []

    for v in rng.permutation(len(counts)).tolist():
        holding: set[int] = set()
        captions = rng.permutation(counts[v])[:steps]
        for c in captions.tolist():
            if not order:
                # All batches grow alike: when the last one is full, so are the others.
                if len(batches[-1]) == size:
                    return batches
                order = _round(steps, holding, rng)

            batch = order.pop()
            holding.add(batch)
            batches[batch].append((v, c))

    return batches


def _round(
    steps: int,
    holding: set[int],
    rng: np.random.Generator,
) -> list[int]:
    """All batches in a random order, to be taken from the end: those in `holding` are taken last."""
    shuffled = rng.permutation(steps).tolist()
    return sorted(shuffled, key=lambda batch: batch not in holding)


def _ahead(jobs: Iterable[Callable[[], Batch]]) -> Generator[Batch]:
    """The jobs' batches in their order, read by threads while the reader is busy with earlier ones."""
    threads = torch.get_num_threads()
    jobs = iter(jobs)
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        # One more than there are threads, so that none waits for the reader.
        first_jobs = itertools.islice(jobs, threads + 1)
        ready = deque(pool.submit(job) for job in first_jobs)
        try:
            while ready:
                batch = ready.popleft().result()

                # At most one: the jobs may be at their end.
                for job in itertools.islice(jobs, 1):
                    ready.append(pool.submit(job))
                yield batch
        finally:
            # A reader that stops early does not wait for batches it will never see.
            for future in ready:
                future.cancel()
