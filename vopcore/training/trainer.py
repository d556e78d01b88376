"""Tuning itself: one step, and its state. Knows no cluster; every worker of one runs exactly this."""

import itertools
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vopcore.clip import set_grad_checkpointing
from vopcore.config import Train
from vopcore.retriever import Retriever
from vopcore.training import optim
from vopcore.training.batches import Batch, TrainingBatches
from vopcore.training.distill import Lesson, Teacher
from vopcore.training.gradients import backward
from vopcore.training.loss import loss_of, pair_numbers
from vopcore.training.transfer import moved_to, on_device

# As CLIP itself was trained (Radford et al. 2021, section 2.5).
MAX_LOGIT_SCALE = math.log(100)

COMPILER = "inductor"

# Of checkpoints; rises when one that was written before cannot be gone on from.
FORMAT = 1

# A gradient norm no tuning comes back from; healthy ones stay below a few hundred.
EXPLODED = 1e6


class DivergedError(RuntimeError):
    """The loss is no longer a number or the gradient has exploded; says at which step, on which videos."""


@dataclass(frozen=True)
class Step:
    """The numbers of one step."""

    number: int
    """Counted from 1 over the run."""
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    """For the step itself, without the wait."""
    wait: float
    """Seconds until its data was there."""
    memory: int
    """Bytes, the most so far: of the GPU if it trains there, else of this process."""


class LaunchedStep:
    """Loss and gradient norm of a step, on their way from the device; `values` waits for them."""

    def __init__(
        self,
        number: int,
        lr: float,
        videos: list[str],
        loss: Tensor,
        norm: Tensor,
    ) -> None:
        self.number = number
        self.lr = lr
        self._videos = videos
        self._event: torch.cuda.Event | None = None

        # One copy for both; the event tells when it has arrived.
        both = torch.stack([loss.float(), norm.float()])
        self._both = both.to("cpu", non_blocking=True)
        if both.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def values(self) -> tuple[float, float]:
        """Raises DivergedError if the step was not taken, and none after it."""
        if self._event is not None:
            self._event.synchronize()

        # A norm that is NaN is not less than anything either.
        loss, norm = self._both.tolist()
        if math.isfinite(loss) and norm < EXPLODED:
            return loss, norm

        videos = ", ".join(self._videos)
        raise DivergedError(
            f"step {self.number}: loss {loss:g}, gradient norm {norm:g}, learning rate {self.lr:g},"
            f" on videos {videos}"
        )


class Tuner:
    """The tuned tensors of a retriever, their optimizer and how far it has come.

    `model` is the retriever or its DistributedDataParallel wrapper. micro_batch: as `settings` has it, or
    what `auto` has come to. teacher: that of `settings.distill`.
    """

    def __init__(
        self,
        retriever: Retriever,
        settings: Train,
        steps_per_epoch: int,
        seed: int,
        model: nn.Module | None = None,
        micro_batch: int | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.retriever = retriever
        self._teacher = teacher
        self.model = model or retriever
        self._settings = settings
        self._seed = seed
        self._device = retriever.mean.device

        if micro_batch is None and settings.micro_batch != "auto":
            micro_batch = settings.micro_batch
        self.micro_batch = micro_batch

        set_grad_checkpointing(retriever.clip, settings.grad_checkpointing)
        if settings.compile:
            # A recurrent layer stays outside its graphs.
            retriever.compile(backend=COMPILER)

        self.tuned: dict[str, nn.Parameter] = {}
        for name, parameter in retriever.named_parameters():
            if parameter.requires_grad:
                self.tuned[name] = parameter

        if not isinstance(settings.lr, float):
            raise ValueError(f"train.lr: {settings.lr}, and one tuning has one learning rate")
        self._optimizer = optim.build(
            self.tuned.items(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            eps=settings.eps,
            no_decay=() if settings.decay_biases_and_prompts else ("bias", "prompts"),
        )
        total_steps = settings.epochs * steps_per_epoch
        self._schedule = optim.schedule(
            self._optimizer,
            total_steps,
            settings.warmup,
        )
        self.steps_per_epoch = steps_per_epoch
        self.steps_done = 0

        # 1 from the first step on that has diverged: the fused optimizer then leaves everything as it is, and
        # the host need not wait to see it.
        self._diverged = torch.zeros((), device=self._device)

        # What `epoch` takes its batches from, which goes on over the ends of epochs; the steps it still has.
        self._stream: Iterator[Batch] = iter(())
        self._streamed: TrainingBatches | None = None
        self._stream_steps = range(0)

        # Of the last step, while the GPU is at it.
        self._unread: LaunchedStep | None = None

        # When the last Step was given out, and the seconds spent waiting for data since then.
        self._told_at = 0.0
        self._waited = 0.0

    @property
    def epochs_done(self) -> int:
        return self.steps_done // self.steps_per_epoch

    def epoch(self, batches: TrainingBatches) -> Iterator[Step]:
        """Train to the end of the epoch that `steps_done` is in.

        On a GPU each Step comes when the next one is under way; `flush` gives the last one.
        Raises DivergedError.
        """
        steps_left = self.steps_per_epoch - self.steps_done % self.steps_per_epoch
        self.model.train()
        self._told_at = time.perf_counter()
        asked_at = self._told_at

        self._open_stream(batches)
        for batch in itertools.islice(self._stream, steps_left):
            self._stream_steps = self._stream_steps[1:]
            self._waited += time.perf_counter() - asked_at
            launched = self._launch(batch)

            # On a GPU what is read now are the numbers of the step before, while it is at this one.
            reading: LaunchedStep | None = launched
            if self._is_late:
                reading = self._unread
                self._unread = launched

            # The time until the caller comes back is its own, not the next step's.
            if reading is not None:
                yield self._tell(reading)
                self._told_at = time.perf_counter()
            asked_at = time.perf_counter()

        yield from self.flush()

    def _open_stream(self, batches: TrainingBatches) -> None:
        """Read `batches` from the next step on, to the last epoch; as before if that is under way."""
        is_at_next_step = self.steps_done in self._stream_steps[:1]
        if self._streamed is batches and is_at_next_step:
            return

        epoch, start = divmod(self.steps_done, self.steps_per_epoch)
        stop = max(epoch + 1, self._settings.epochs)
        read_ahead = batches.epochs(epoch, stop, start)
        self._stream = on_device(read_ahead, self.retriever.clip, self._device)
        self._streamed = batches
        self._stream_steps = range(self.steps_done, stop * self.steps_per_epoch)

    def flush(self) -> Iterator[Step]:
        """The Step that is still to come, if one is: all up to `steps_done` are told then."""
        reading = self._unread
        self._unread = None
        if reading is not None:
            yield self._tell(reading)

    def step(self, batch: Batch) -> tuple[float, float, float]:
        """One optimizer step: loss of the global batch, gradient norm before clipping, learning rate.

        Raises:
            DivergedError: the loss is NaN or infinite, or the gradient has exploded; nothing was changed.
        """
        if self._device.type == "cuda" and not batch.frames.is_cuda:
            batch = moved_to(batch, self.retriever.clip, self._device)

        reading = self._launch(batch)
        loss, norm = reading.values()
        return loss, norm, reading.lr

    @property
    def _is_late(self) -> bool:
        """Whether a step's numbers are read when the next one is under way."""
        return self._device.type == "cuda"

    def _launch(self, batch: Batch) -> LaunchedStep:
        """Start one step; nothing of it waits for a GPU."""
        self._optimizer.zero_grad(set_to_none=True)

        # Captions and videos that occur twice in the batch are no negatives of each other.
        identity = None
        if self._settings.mask_duplicates:
            numbers = pair_numbers(batch.videos, batch.captions)
            identity = numbers.to(self._device, non_blocking=True)

        # The seed is that of dropout: the same after a restart.
        loss = backward(
            self.model,
            self.retriever,
            batch,
            self.micro_batch,
            seed=(self._seed, self.steps_done),
            loss_of=partial(
                loss_of,
                self._settings.loss,
                identity=identity,
                lesson=self._lesson(batch),
            ),
        )

        # Without a limit the norm is still measured; foreach takes few kernels for all tensors.
        norm = nn.utils.clip_grad_norm_(
            self.tuned.values(),
            max_norm=self._settings.clip_grad or float("inf"),
            foreach=True if self._is_late else None,
        )
        reading = LaunchedStep(
            number=self.steps_done + 1,
            lr=float(self._schedule.get_last_lr()[0]),
            videos=batch.videos,
            loss=loss,
            norm=norm,
        )

        if self._is_late:
            is_healthy = loss.isfinite() & (norm < EXPLODED)
            self._diverged = torch.where(is_healthy, self._diverged, 1.0)

            # As GradScaler tells the fused optimizer: skip the update.
            setattr(self._optimizer, "found_inf", self._diverged)  # noqa: B010 - no attribute of its type
        else:
            reading.values()

        self._optimizer.step()
        self._schedule.step()

        scale = self.retriever.clip.logit_scale
        if scale.requires_grad:
            scale.data.clamp_(max=MAX_LOGIT_SCALE)
        self.steps_done += 1
        return reading

    def _lesson(self, batch: Batch) -> Lesson | None:
        """What the teacher says of the batch."""
        distill = self._settings.distill
        if self._teacher is None or distill is None:
            return None
        return self._teacher.lesson(
            batch.captions,
            batch.videos,
            distill.weight,
            self._device,
        )

    def _tell(self, reading: LaunchedStep) -> Step:
        """What is told of a step; its time is that since the last one was told."""
        loss, norm = reading.values()
        now = time.perf_counter()
        wait = self._waited
        seconds = now - self._told_at - wait

        self._waited = 0.0
        self._told_at = now
        return Step(
            number=reading.number,
            loss=loss,
            grad_norm=norm,
            lr=reading.lr,
            seconds=seconds,
            wait=wait,
            memory=peak_memory(self._device),
        )

    def save(self, path: Path) -> None:
        """Write tuned tensors, optimizer and place: all that a restart needs."""
        state = {
            "format": FORMAT,
            "tuned": {name: parameter.detach() for name, parameter in self.tuned.items()},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "steps_done": self.steps_done,
        }
        torch.save(state, path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises ValueError, one line, for what another version wrote of other tensors or in another format.
        """
        # To the CPU first: the optimizer moves what belongs on the device, and its step counts may not.
        state: dict[str, Any] = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
        )
        self._check(state, path)
        with torch.no_grad():
            for name, parameter in self.tuned.items():
                parameter.copy_(state["tuned"][name])

        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.steps_done = state["steps_done"]

    def _check(self, state: Mapping[str, Any], path: Path) -> None:
        way_on = "go on with the version that wrote it, or tune anew with run=NAME"

        # The first ones did not say.
        written = state.get("format", 1)
        if written != FORMAT:
            raise ValueError(f"{path} is a checkpoint of format {written}, and this is {FORMAT}: {way_on}")

        expected = {name: tuple(parameter.shape) for name, parameter in self.tuned.items()}
        given = {name: tuple(tensor.shape) for name, tensor in state["tuned"].items()}
        for name in [*expected, *given]:
            if given.get(name) != expected.get(name):
                raise ValueError(
                    f"{path} is a checkpoint of other code: its {name} is {given.get(name)}, here"
                    f" {expected.get(name)}; {way_on}"
                )


def peak_memory(device: torch.device) -> int:
    """Bytes that were in use at once: of a GPU as torch allocates them, else of this process (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)

    # Linux gives kilobytes.
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return 1024 * usage.ru_maxrss


def train(
    tuner: Tuner,
    batches: TrainingBatches,
    epochs: int,
    on_step: Callable[[Step], None] = lambda step: None,
) -> None:
    """The plain loop, in one process or under torchrun: from where the tuner is to the last epoch."""
    while tuner.epochs_done < epochs:
        for step in tuner.epoch(batches):
            on_step(step)
