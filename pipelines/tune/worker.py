"""What each Ray Train worker runs: build, attach, go on from the last checkpoint, train, embed, measure."""

import math
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_device, prepare_model

from pipelines.tune.evaluate import SplitEvaluator
from vopcore import clip as clips
from vopcore.config import MethodRun, RunConfig
from vopcore.config.sections import interval_seconds
from vopcore.methods import save_tuned, tune
from vopcore.metrics.names import CURVES
from vopcore.retriever import Retriever
from vopcore.shards import Shards
from vopcore.storage import ShardCache, below
from vopcore.training import memory, precision
from vopcore.training import prefix_cache as prefix
from vopcore.training.batches import TrainingBatches
from vopcore.training.trainer import DivergedError, Step, Tuner, peak_memory
from vopcore.training.transfer import moved_to

STATE, WEIGHTS, SECONDS = "state.pt", "tuned.safetensors", "seconds.txt"
ASK_EVERY = 16  # steps between two looks of several workers at rank 0's clock


@dataclass(frozen=True)
class Task:
    """All a worker needs to know; plain values, sent once."""

    config: RunConfig
    run: MethodRun
    annotations: pa.Table
    shards: str


def work(loop: dict[str, Any]) -> dict[str, Any]:
    """Tune and measure one method together with the other workers.

    Returns `steps`: how many there were; `metrics`: recall on the test split, that on val under `val/`,
    counts of parameters, seconds; `tags`: what the frozen CLIP was; `predictions` (PREDICTIONS) of the test
    split; and its videos as `gallery`, from rank 0 where the config wants it. What would fail again on every
    restart, such as a loss that is NaN, is returned as `error`.
    """
    try:
        return Worker(loop["task"], loop["mailbox"]).run()
    except (DivergedError, ValueError) as error:
        return {"error": str(error)}
    except torch.OutOfMemoryError as error:
        return {"error": f"the GPU's memory is too small ({first_sentence(error)}): {memory.WAYS_OUT}"}
    except MemoryError as error:
        return {"error": f"the memory is too small: {error}"}


class Worker:
    """One of the processes of a run; all do the same, each with its part of every batch."""

    def __init__(self, task: Task, mailbox: Any) -> None:  # noqa: ANN401 - a handle of Ray's
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.workers = context.get_world_size()
        self.task = task
        self.config = task.config
        self.settings = task.run.train
        self.device = get_device()
        self._mailbox = mailbox
        self._began = time.perf_counter()

        torch.set_num_threads(self.config.resources.cpus_per_worker)  # whatever the machine's own setting
        torch.manual_seed(self.config.seed)  # the method's own initial values
        clip = clips.load(self.config.clip.model, self.config.clip.pretrained)
        clip.requires_grad_(False)
        chosen = precision.resolve(self.settings.precision, self.device)
        gpu = torch.cuda.get_device_name() if self.device.type == "cuda" else "none"
        self.tags = {
            "gpu": gpu,
            "precision": chosen,
            "activation": clips.activation(clip),
            "backbone_hash": clips.frozen_hash(clip),
        }
        self._say(f"computes in {chosen} on {'the CPU' if gpu == 'none' else gpu}")

        self.tokenize = clips.tokenizer(clip, self.config.clip.words)
        captions = task.annotations["caption"].unique().to_pylist()
        clips.check_not_blind(clip, self.tokenize, self.tokenize.name, captions)

        tune(clip, task.run.method, self.config.video.frames)
        learn_scale = self.settings.learn_logit_scale
        towers = precision.apply(chosen)
        self.retriever = Retriever(clip, task.run.pooling, learn_scale, towers).to(self.device)
        self.cache = ShardCache(**self.config.resources.cache.model_dump())
        self.shards = Shards(task.shards, self.cache)
        self.captions = training_captions(task.annotations, self.shards)
        self.splits = set(task.annotations["split"].unique().to_pylist())

    def run(self) -> dict[str, Any]:
        """What `work` returns."""
        tuned = [p.numel() for p in self.retriever.parameters() if p.requires_grad]
        total = sum(p.numel() for p in self.retriever.parameters())
        metrics = {"params/trainable": sum(tuned), "params/total": total}
        metrics["params/percent"] = 100 * sum(tuned) / total
        steps = 0
        if tuned and self.settings.epochs:
            steps, seconds = self._tune()
            metrics |= seconds
        else:
            metrics["seconds/tune"] = 0.0
            self._report([])
        for split in (split for split in ("val", "test") if split in self.splits):
            result = self._evaluator(split).measure(
                self._rows(split), self._bank(), self.config.evaluate, self.config.seed
            )
            for name, number in result.numbers.items():
                metrics[name if split == "test" else f"{split}/{name}"] = number
        metrics["seconds/total"] = time.perf_counter() - self._began
        metrics["memory/peak_mb"] = peak_memory(self.device) / 2**20  # of its GPU, else of this process
        done = {"steps": steps, "metrics": metrics, "tags": self.tags, "predictions": result.predictions}
        wanted = self.rank == 0 and self.config.mlflow.model == "search"
        return done | ({"gallery": result.videos} if wanted else {})

    def _tune(self) -> tuple[int, dict[str, float]]:
        """Train on from the last checkpoint; returns the steps and the seconds, all attempts together."""
        began = time.perf_counter()
        source = self._source()
        there = time.perf_counter() - began
        settings = self.settings
        batches = TrainingBatches(
            source,
            self.captions,
            self.tokenize,
            frames=self.config.video.frames,
            batch_size=settings.batch_size,
            draw=settings.captions,
            seed=self.config.seed,
            repeat_videos=settings.repeat_videos,
            augment=settings.augment,
            rank=self.rank,
            workers=self.workers,
            pin=self.device.type == "cuda",
        )
        micro_batch = self._micro_batch(batches)
        model = prepare_model(self.retriever) if self.workers > 1 else self.retriever
        tuner = Tuner(self.retriever, settings, batches.steps_per_epoch, self.config.seed, model, micro_batch)
        spent, checkpoint = 0.0, ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                tuner.load(Path(folder) / STATE)
                spent = float((Path(folder) / SECONDS).read_text())
            total = settings.epochs * tuner.steps_per_epoch
            workers = f"{self.workers} worker{'s' * (self.workers > 1)}"
            self._say(f"going on from step {tuner.steps_done} of {total} with {workers}")
        spent = self._steps(tuner, batches, spent)
        seconds = {"seconds/tune": spent} | ({"seconds/prefix": there} if source is not self.shards else {})
        return tuner.steps_done, seconds

    def _steps(self, tuner: Tuner, batches: TrainingBatches, spent: float) -> float:
        """All steps that are left, with a checkpoint and the curves up to it now and then."""
        total = self.settings.epochs * tuner.steps_per_epoch
        is_due = CheckpointClock(self.settings.checkpoint_every, tuner.steps_per_epoch, total)
        watch = self.config.evaluate.each_epoch and "val" in self.splits
        curves: list[tuple[int, dict[str, float]]] = []

        while tuner.steps_done < total:
            for step in tuner.epoch(batches):
                # A checkpoint holds all steps that the tuner has taken: the numbers of the last one too.
                due = is_due(tuner.steps_done)
                steps = [step, *(tuner.flush() if due else ())]
                for told in steps:
                    spent += told.wait + told.seconds
                    self._tell("tune", "steps", told.number, total, f"loss {told.loss:.3f}")
                    curves.append((told.number, _numbers(told, self.settings.batch_size)))

                last = steps[-1].number
                if watch and last % tuner.steps_per_epoch == 0 and last < total:
                    curves.append((last, self._val_curves()))
                if due:
                    self._report(curves, tuner, spent)
                    curves = []
        return spent

    def _micro_batch(self, batches: TrainingBatches) -> int | None:
        """Videos that hold activations at once: as the settings say, or as many as the GPU has room for."""
        setting = self.settings.micro_batch
        if self.device.type != "cuda":
            return None if setting == "auto" else setting

        with closing(batches.epoch(0)) as reading:
            first = next(reading)
        like = moved_to(first, self.retriever.clip, self.device)
        needs = memory.estimate(self.retriever.train(), like)
        videos = len(first.videos)
        total = torch.cuda.get_device_properties(self.device).total_memory
        chosen = setting
        if setting == "auto":
            chosen = self._least(needs.micro_batch(videos, int(memory.USABLE * total)) or videos)
            chosen = None if chosen >= videos else chosen

        peak = needs.bytes(min(chosen or videos, videos)) / 2**30
        at_once = "" if chosen is None else f", with the activations of {chosen} at a time (micro_batch)"
        self._say(f"a batch of {videos} needs about {peak:.1f} of {total / 2**30:.1f} GiB{at_once}")
        return chosen

    def _least(self, number: int) -> int:
        """The least of all workers' numbers: they must do the same."""
        if self.workers == 1:
            return number
        least = torch.tensor(number, device=self.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def _source(self) -> Shards | prefix.Prefix:
        """Where to read training frames from: the shards, or with `prefix_cache` what the frozen blocks make
        of them, each worker computing its part of what is missing."""
        kept = self.settings.prefix_cache
        folder = below(self.config.storage or self.config.output, "prefix")
        videos = sorted(self.captions)
        plan = prefix.plan(self.retriever, self.shards, videos, kept, folder) if kept else None
        if plan is None:
            return self.shards
        missing = [plan.missing()]
        if self.workers > 1:
            dist.broadcast_object_list(missing, src=0)

        def tell(done: int, total: int) -> None:
            self._tell("run the frozen blocks", "videos", done, total, "")

        prefix.write(plan, missing[0][self.rank :: self.workers], self.retriever, self.shards, tell)
        if self.workers > 1:
            dist.barrier()
        return prefix.Prefix(plan, self.cache)

    def _val_curves(self) -> dict[str, float]:
        """The plain numbers alone; the last epoch's come with everything else, at the end."""
        numbers = self._evaluator("val").recall(self._rows("val"))
        return {f"val/{name}": numbers[name] for name in CURVES}

    def _evaluator(self, split: str) -> SplitEvaluator:
        return SplitEvaluator(
            self.retriever,
            self.shards,
            self.tokenize,
            self.config.video.frames,
            lambda embedded, total: self._tell(f"embed the {split} split", "videos", embedded, total, ""),
        )

    def _rows(self, split: str) -> pa.Table:
        """The rows of ANNOTATIONS of a split."""
        return self.task.annotations.filter(pc.equal(self.task.annotations["split"], split))

    def _bank(self) -> list[str]:
        """All training captions."""
        return [text for texts in self.captions.values() for text in texts]

    def _report(
        self, curves: list[tuple[int, Mapping[str, float]]], tuner: Tuner | None = None, spent: float = 0.0
    ) -> None:
        """Hand the curves since last time and a checkpoint to Ray Train: every worker; rank 0 saves."""
        with tempfile.TemporaryDirectory() as folder:
            if self.rank == 0:
                save_tuned(Path(folder) / WEIGHTS, self.retriever.clip, self.task.run.pooling)
                (Path(folder) / SECONDS).write_text(str(spent))
                if tuner is not None:
                    tuner.save(Path(folder) / STATE)
            checkpoint = Checkpoint.from_directory(folder) if self.rank == 0 else None
            ray.train.report({"curves": curves}, checkpoint=checkpoint)

    def _say(self, line: str) -> None:
        """One line of the log."""
        if self.rank == 0:
            print(f"{self.task.run.name}: {line}", file=sys.stderr, flush=True)

    def _tell(self, what: str, unit: str, done: int, total: int, words: str) -> None:
        if self.rank == 0:
            self._mailbox.put.remote(what, unit, done, total, words)


class CheckpointClock:
    """Says after which steps a checkpoint is due; the same on every worker.

    every: a number of steps, or a time such as `5min` beside the end of each epoch, or None for each epoch.
    """

    def __init__(self, every: int | str | None, steps_per_epoch: int, total: int) -> None:
        self._steps = every if isinstance(every, int) else steps_per_epoch
        self._seconds = interval_seconds(every) if isinstance(every, str) else math.inf
        self._total = total
        self._last = time.monotonic()

    def __call__(self, steps_done: int) -> bool:
        """Whether to save now."""
        due = steps_done % self._steps == 0 or steps_done == self._total or self._time_is_up(steps_done)
        if due:
            self._last = time.monotonic()
        return due

    def _time_is_up(self, steps_done: int) -> bool:
        if self._seconds == math.inf:
            return False
        is_up = time.monotonic() - self._last >= self._seconds
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return is_up

        # Clocks differ: rank 0 decides for all, and not after every step, as asking stops the GPUs.
        if steps_done % ASK_EVERY:
            return False
        device = get_device()
        answer = torch.tensor(int(is_up), device=device)
        dist.broadcast(answer, src=0)
        return bool(answer)


def first_sentence(error: Exception) -> str:
    """What an error says first."""
    return str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__


def training_captions(annotations: pa.Table, shards: Shards) -> dict[str, list[str]]:
    """The captions of each training video that could be decoded."""
    decoded = {video for video, entry in shards.videos.items() if entry.num_frames}
    captions: dict[str, list[str]] = {}
    for row in annotations.filter(pc.equal(annotations["split"], "train")).to_pylist():
        if row["video"] in decoded:
            captions.setdefault(row["video"], []).append(row["caption"])
    return captions


def _numbers(step: Step, batch_size: int) -> dict[str, float]:
    return {
        "train/loss": step.loss,
        "train/grad_norm": step.grad_norm,
        "train/lr": step.lr,
        "train/seconds_per_step": step.seconds,
        "train/wait_share": step.wait / (step.wait + step.seconds),
        "train/videos_per_second": batch_size / (step.wait + step.seconds),
        "train/memory_gib": step.memory / 2**30,
    }
