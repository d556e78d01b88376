"""Tuning itself: one step, and its state. Knows no cluster; every worker of one runs exactly this."""

import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vopcore.clip import set_grad_checkpointing
from vopcore.config import Train
from vopcore.retriever import Retriever
from vopcore.training import optim
from vopcore.training.batches import Batch, TrainingBatches
from vopcore.training.gradients import backward

MAX_LOGIT_SCALE = math.log(100)  # as CLIP itself was trained (Radford et al. 2021, section 2.5)

EXPLODED = 1e6  # a gradient norm no tuning comes back from; healthy ones stay below a few hundred


class DivergedError(RuntimeError):
    """The loss is no longer a number or the gradient has exploded; says at which step, on which videos."""


@dataclass(frozen=True)
class Step:
    """What one step tells: `number` counts from 1 over the run; `seconds` it took, `wait` for its data;
    `memory` in bytes, the most so far: of the GPU if it trains there, else of this process."""

    number: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    wait: float
    memory: int


class Tuner:
    """The tuned tensors of a retriever, their optimizer and how far it has come.

    `model` is the retriever or its DistributedDataParallel wrapper.
    """

    def __init__(
        self,
        retriever: Retriever,
        settings: Train,
        steps_per_epoch: int,
        seed: int,
        model: nn.Module | None = None,
    ) -> None:
        self.retriever, self.model, self._settings, self._seed = retriever, model or retriever, settings, seed
        set_grad_checkpointing(retriever.clip, settings.grad_checkpointing)
        self.tuned = {n: p for n, p in retriever.named_parameters() if p.requires_grad}
        self._optimizer = optim.build(
            self.tuned.items(),
            settings.lr,
            settings.weight_decay,
            settings.betas,
            settings.eps,
            () if settings.decay_biases_and_prompts else ("bias", "prompts"),
        )
        self._schedule = optim.schedule(self._optimizer, settings.epochs * steps_per_epoch, settings.warmup)
        self.steps_per_epoch, self.steps_done = steps_per_epoch, 0

    @property
    def epochs_done(self) -> int:
        return self.steps_done // self.steps_per_epoch

    def epoch(self, batches: TrainingBatches) -> Iterator[Step]:
        """Train to the end of the epoch that `steps_done` is in."""
        epoch, start = divmod(self.steps_done, self.steps_per_epoch)
        self.model.train()
        asked = time.perf_counter()
        for batch in batches.epoch(epoch, start):
            began = time.perf_counter()
            loss, norm, lr = self.step(batch)
            done = time.perf_counter()
            memory = peak_memory(self.retriever.mean.device)
            yield Step(self.steps_done, loss, norm, lr, done - began, began - asked, memory)
            asked = time.perf_counter()

    def step(self, batch: Batch) -> tuple[float, float, float]:
        """One optimizer step: loss of the global batch, gradient norm before clipping, learning rate.

        Raises:
            DivergedError: the loss is NaN or infinite, or the gradient has exploded; nothing was changed.
        """
        seed = (self._seed, self.steps_done)  # of dropout: the same after a restart
        self._optimizer.zero_grad(set_to_none=True)
        loss = backward(self.model, self.retriever, batch, self._settings.micro_batch, seed)
        limit = self._settings.clip_grad or float("inf")
        norm = nn.utils.clip_grad_norm_(self.tuned.values(), limit)
        lr = self._schedule.get_last_lr()[0]
        if not (loss.isfinite() and norm < EXPLODED):  # NaN is not less either
            raise DivergedError(
                f"step {self.steps_done + 1}: loss {loss.item():g}, gradient norm {norm.item():g}, learning"
                f" rate {lr:g}, on videos {', '.join(batch.videos)}"
            )
        self._optimizer.step()
        self._schedule.step()
        if (scale := self.retriever.clip.logit_scale).requires_grad:
            scale.data.clamp_(max=MAX_LOGIT_SCALE)
        self.steps_done += 1
        return loss.item(), norm.item(), lr

    def save(self, path: Path) -> None:
        """Write tuned tensors, optimizer and place: all that a restart needs."""
        torch.save(
            {
                "tuned": {name: p.detach() for name, p in self.tuned.items()},
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
                "steps_done": self.steps_done,
            },
            path,
        )

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state: dict[str, Any] = torch.load(path, map_location=self.retriever.mean.device, weights_only=True)
        with torch.no_grad():
            for name, parameter in self.tuned.items():
                parameter.copy_(state["tuned"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.steps_done = state["steps_done"]


def peak_memory(device: torch.device) -> int:
    """Bytes that were in use at once: of a GPU as torch allocates them, else of this process (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def train(
    tuner: Tuner, batches: TrainingBatches, epochs: int, on_step: Callable[[Step], None] = lambda step: None
) -> None:
    """The plain loop, in one process or under torchrun: from where the tuner is to the last epoch."""
    while tuner.epochs_done < epochs:
        for step in tuner.epoch(batches):
            on_step(step)
