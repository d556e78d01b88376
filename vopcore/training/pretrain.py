"""The quickstart's pretraining: a small CLIP learns from stills what things are and where, never when.

Real runs start from a published CLIP instead; this one exists so that the whole path, frozen backbone
included, runs where nothing can be downloaded.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vopcore.clip import CLIP
from vopcore.metrics.bootstrap import interval
from vopcore.retriever import Retriever
from vopcore.training.loss import contrastive

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, list[str]]]
"""(rng, N) -> stills uint8 [N, S, S, 3], N captions"""

# In the place of a step: no training has so many.
UNSEEN = 2**31


STILLS = 512  # that a tuned CLIP is asked about
STILLS_AT_ONCE = 64


@dataclass(frozen=True)
class StillsRecall:
    """Of how many stills, in percent, the nearest caption is their own. low, high: 95% interval."""

    percent: float
    low: float
    high: float


@torch.no_grad()
def stills_recall(
    retriever: Retriever,
    draw: Draw,
    captions: list[str],
    tokenize: Callable[[list[str]], torch.Tensor],
    *,
    frames: int,
    seed: int,
    count: int = STILLS,
) -> StillsRecall:
    """What `retriever` knows of stills: each is compared with all `captions` there can be.

    The stills are none of the pretraining's and the same for the same seed. One is shown as a video of
    `frames` equal frames, which is what methods that want so many can see.
    """
    rng = np.random.default_rng([seed, UNSEEN])
    images, own_captions = draw(rng, count)
    device = retriever.mean.device

    was_training = retriever.training
    retriever.eval()
    text = retriever.text(tokenize(captions).to(device))

    hits = []
    for start in range(0, count, STILLS_AT_ONCE):
        chunk = slice(start, start + STILLS_AT_ONCE)
        pixels = torch.from_numpy(images[chunk]).permute(0, 3, 1, 2)
        videos = pixels[:, None].repeat(
            1,
            frames,
            1,
            1,
            1,
        )
        features = retriever.video(videos.to(device))

        nearest = retriever.similarity(text, features).argmax(dim=0)
        for number, own in zip(nearest.tolist(), own_captions[chunk], strict=True):
            hits.append(float(captions[number] == own))
    retriever.train(was_training)

    found = torch.tensor(hits, dtype=torch.float64)
    low, high = interval(found, torch.arange(count), seed)
    return StillsRecall(100 * float(found.mean()), low, high)


class StillsTraining:
    """Training of all of `clip`, in place, on freshly drawn stills; iterating it trains to the last step.

    AdamW, 5 % warm-up, cosine to zero, as CLIP itself was trained (Radford et al. 2021, section 2.5). The
    stills of a step depend on `seed` and the step alone, so one that goes on after an interruption sees what
    an undisturbed one would have seen.
    """

    def __init__(
        self,
        clip: CLIP,
        draw: Draw,
        tokenize: Callable[[list[str]], torch.Tensor],
        *,
        steps: int,
        batch_size: int,
        lr: float,
        seed: int,
    ) -> None:
        self._clip = clip
        self._draw = draw
        self._tokenize = tokenize
        self._steps = steps
        self._batch_size = batch_size
        self._seed = seed
        self.steps_done = 0

        self._retriever = Retriever(clip)
        self._optimizer = torch.optim.AdamW(
            clip.parameters(),
            lr=lr,
            weight_decay=0.05,
            fused=True,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            self._lr_factor,
        )

    def __iter__(self) -> Iterator[float]:
        """Train step by step, yielding the loss of each."""
        while self.steps_done < self._steps:
            yield self._step()

    def _step(self) -> float:
        rng = np.random.default_rng([self._seed, self.steps_done])
        images, captions = self._draw(rng, self._batch_size)

        # A still is a video of one frame.
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
        frames = channels_first[:, None]

        tokens = self._tokenize(captions)
        text, video = self._retriever(frames, None, tokens)
        loss = contrastive(text, video, None, self._retriever)

        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        self.steps_done += 1
        return loss.item()

    def _lr_factor(self, step: int) -> float:
        warmup = max(1, self._steps // 20)
        rising = (step + 1) / warmup
        angle = math.pi * step / self._steps
        cosine = 0.5 * (1 + math.cos(angle))

        # Where the two meet the warm-up ends, without a jump.
        return min(rising, cosine)

    def save(self, path: Path) -> None:
        """Write all that `load` needs to go on from here."""
        state = {
            "clip": self._clip.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "steps_done": self.steps_done,
        }
        torch.save(state, path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self._clip.load_state_dict(state["clip"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.steps_done = state["steps_done"]
