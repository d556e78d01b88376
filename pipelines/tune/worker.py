"""What each Ray Train worker runs: build, attach, go on from the last checkpoint, train, embed, measure."""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_device, prepare_model

from pipelines.command.progress import SAYS
from pipelines.tune.evaluate import SplitEvaluator, over_workers
from vopcore.clip import activation, check_not_blind, frozen_hash, load, tokenizer
from vopcore.config import ConfigEntry, Evaluate, MethodRun, RunConfig, backbone, fingerprint
from vopcore.config.sections import Backbone, interval_seconds
from vopcore.datasets import shapes
from vopcore.embedder import Embedder
from vopcore.methods import load_tuned, save_tuned, tune
from vopcore.metrics import names
from vopcore.retriever import Retriever
from vopcore.shards import Shards
from vopcore.storage import ShardCache, Store, below, local_copy, scratch_folder
from vopcore.training import memory, precision
from vopcore.training import prefix_cache as prefix
from vopcore.training.batches import TrainingBatches, stack_frames
from vopcore.training.distill import Teacher
from vopcore.training.pretrain import stills_recall
from vopcore.training.trainer import DivergedError, Step, Tuner, peak_memory
from vopcore.training.transfer import moved_to
from vopcore.tuned_model import VideoVectors

# The files of a checkpoint.
STATE = "state.pt"
WEIGHTS = "tuned.safetensors"
SECONDS = "seconds.txt"

# What would fail again on every restart.
HOPELESS = (DivergedError, ValueError, torch.OutOfMemoryError, MemoryError)

# Steps between two looks of several workers at rank 0's clock.
ASK_EVERY = 16


@dataclass(frozen=True)
class Task:
    """All a worker needs to know; plain values, sent once."""

    config: RunConfig
    run: MethodRun
    annotations: pa.Table
    shards: str
    others: Sequence["OtherSplit"] = ()
    teacher: "TeacherRun | None" = None


@dataclass(frozen=True)
class TeacherRun:
    """A finished run that teaches: the folder and the file of its tuned weights, the frozen CLIP below them,
    how many frames of a video it sees, and the seed that a CLIP without weights was drawn from.
    """

    folder: str
    file: str
    clip: Backbone
    frames: int
    seed: int


@dataclass(frozen=True)
class OtherSplit:
    """The test split of another config, as `evaluate.also` says in `entry`.

    annotations: its rows; shards: the folder of its frames; the hashes: what they contain.
    """

    name: str
    entry: ConfigEntry
    annotations: pa.Table
    shards: str
    data_hash: str
    decode_hash: str


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """What one method has come to: the same on every worker, but for the gallery."""

    steps: int
    metrics: dict[str, float]
    """Recall on the test split, that on val under `val/`; counts of parameters; seconds; memory."""
    tags: dict[str, str]
    """What the frozen CLIP was, and what computed it."""
    predictions: pa.Table
    """PREDICTIONS of the test split."""
    transfers: Mapping[str, pa.Table] = field(default_factory=dict)
    """PREDICTIONS of other configs' test splits, by their names."""
    gallery: VideoVectors | None
    """The test split's videos, from rank 0 where the config wants a model that can search."""


class HopelessError(RuntimeError):
    """What would fail again on every restart, such as a loss that is NaN; the message is the reason."""


def work(loop: dict[str, Any]) -> WorkerResult:
    """Tune and measure one method together with the other workers.

    loop: a Task as `task`, and as `mailbox` the actor that hears how far the work is. Raises HopelessError,
    also where only one of several workers has met it: the others wait for that one, and Ray ends them.
    """
    context = ray.train.get_context()
    try:
        worker = Worker(
            loop["task"],
            loop["mailbox"],
            get_device(),
            rank=context.get_world_rank(),
            workers=context.get_world_size(),
        )
        return worker.run()
    except HOPELESS as error:
        raise HopelessError(hopeless_reason(error)) from error


def hopeless_reason(error: Exception) -> str:
    """One line for one of HOPELESS, with the ways out where there are some."""
    if isinstance(error, torch.OutOfMemoryError):
        cause = first_sentence(error)
        return f"the GPU's memory is too small ({cause}): {memory.WAYS_OUT}"
    if isinstance(error, MemoryError):
        return f"the memory is too small: {error}"
    return str(error)


class Worker:
    """One of the processes of a run; all do the same, each with its share of every batch.

    mailbox: hears how far the work is, from rank 0; None: nobody wants to know.
    """

    def __init__(
        self,
        task: Task,
        mailbox: Any,  # noqa: ANN401 - a handle of Ray's
        device: torch.device,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        self.rank = rank
        self.workers = workers
        self.task = task
        self.config = task.config
        self.settings = task.run.train
        self.device = device
        self._mailbox = mailbox
        self._began = time.perf_counter()

        # Whatever the machine's own setting is.
        torch.set_num_threads(self.config.resources.cpus_per_worker)

        # Before `tune`: of the method's initial values.
        torch.manual_seed(self.config.seed)
        clip = load(self.config.clip.model, self.config.clip.pretrained)
        clip.requires_grad_(False)

        resolved = precision.resolve(self.settings.precision, self.device)
        gpu = "none"
        if self.device.type == "cuda":
            gpu = torch.cuda.get_device_name()
        self.tags = {
            "gpu": gpu,
            "precision": resolved,
            "activation": activation(clip),
            "backbone_hash": frozen_hash(clip),
        }
        machine = "the CPU" if gpu == "none" else gpu
        self._say(f"computes in {resolved} on {machine}")

        # On the bare CLIP, before the method is attached to it.
        self.tokenize = tokenizer(clip, self.config.clip.context)
        captions = task.annotations["caption"].unique().to_pylist()
        check_not_blind(clip, self.tokenize, self.tokenize.name, captions)

        tune(clip, task.run.method, self.config.video.frames, task.run.merge)
        retriever = Retriever(
            clip,
            task.run.pooling,
            self.settings.learn_logit_scale,
            precision.apply(resolved),
        )
        self.retriever = retriever.to(self.device)
        self.cache = ShardCache(**self.config.resources.cache.model_dump())
        self.shards = Shards(task.shards, self.cache)
        self.captions = training_captions(task.annotations, self.shards)
        self.splits = set(task.annotations["split"].unique().to_pylist())

    def run(self) -> WorkerResult:
        """Tune, then measure on the splits that the annotations have."""
        metrics = self._parameter_counts()
        num_tuned = metrics["params/trainable"]

        steps = 0
        if num_tuned and self.settings.epochs:
            steps, seconds = self._tune()
            metrics |= seconds
        else:
            # Nothing to tune, but the run's checkpoint must be there.
            metrics[names.TUNING_SECONDS] = 0.0
            self._report([])

        for split in ("val", "test"):
            if split not in self.splits:
                continue

            result = self._evaluator(split).measure(
                self._rows(split),
                self._bank(),
                self.config.evaluate,
                self.config.seed,
            )
            prefix_of_split = "" if split == "test" else f"{split}/"
            for name, number in result.numbers.items():
                metrics[prefix_of_split + name] = number

        transfers = {}
        for other in self.task.others:
            transferred = self._evaluator(other.name, other.shards).measure(
                other.annotations,
                bank=[],
                options=Evaluate(),
                seed=self.config.seed,
            )
            transfers[other.name] = transferred.predictions
            for name, number in transferred.numbers.items():
                metrics[names.transfer(other.name, name)] = number

        if self.config.shapes is not None:
            metrics |= self._recall_of_stills()

        metrics[names.TOTAL_SECONDS] = time.perf_counter() - self._began

        # Of its GPU, else of this process.
        metrics[names.PEAK_MEMORY] = peak_memory(self.device) / 2**20

        is_searched = self.rank == 0 and self.config.mlflow.model == "search"
        return WorkerResult(
            steps=steps,
            metrics=metrics,
            tags=self.tags,
            predictions=result.predictions,
            transfers=transfers,
            gallery=result.videos if is_searched else None,
        )

    def _parameter_counts(self) -> dict[str, float]:
        """Of all parameters and of those that are tuned."""
        num_tuned = 0
        num_parameters = 0
        for parameter in self.retriever.parameters():
            num_parameters += parameter.numel()
            if parameter.requires_grad:
                num_tuned += parameter.numel()

        return {
            "params/trainable": num_tuned,
            "params/total": num_parameters,
            "params/percent": 100 * num_tuned / num_parameters,
        }

    def _tune(self) -> tuple[int, dict[str, float]]:
        """Train on from the last checkpoint; returns the steps and the seconds, all attempts together."""
        began = time.perf_counter()
        source = self.source()
        prefix_seconds = time.perf_counter() - began

        tuner, batches = self.tuner(source)
        seconds_before = self._go_on(tuner)
        tuning_seconds = self._steps(tuner, batches, seconds_before)

        seconds = {names.TUNING_SECONDS: tuning_seconds}
        if source is not self.shards:
            seconds[names.PREFIX_SECONDS] = prefix_seconds
        return tuner.steps_done, seconds

    def tuner(self, source: Shards | prefix.Prefix) -> tuple[Tuner, TrainingBatches]:
        """What tunes, before its first step, and the batches that it is to read from `source`."""
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

        # Before DDP holds the parameters: the estimate runs the bare retriever.
        micro_batch = self._micro_batch(batches)
        model = prepare_model(self.retriever) if self.workers > 1 else self.retriever
        tuner = Tuner(
            self.retriever,
            settings,
            batches.steps_per_epoch,
            self.config.seed,
            model,
            micro_batch,
            teacher=self._teacher(),
        )
        return tuner, batches

    def _teacher(self) -> Teacher | None:
        """The vectors of the run that teaches: computed by all workers once, then kept beside the shards."""
        run = self.task.teacher
        if run is None:
            return None

        videos = sorted(self.captions)
        captions = list(dict.fromkeys(self._bank()))
        weights = Store(run.folder).read(run.file)
        content = [
            hashlib.sha256(weights).hexdigest(),
            backbone(run.clip),
            run.seed if run.clip.pretrained is None else None,
            run.frames,
            self.tags["precision"],
            captions,
            [[video, *self.shards.place(video)] for video in videos],
        ]
        store = Store(below(self.config.storage or self.config.output, "teacher"))
        name = f"vectors-{fingerprint(content)}.safetensors"

        # Rank 0's word is everybody's: the file may appear while others still look.
        is_there = [store.exists(name)]
        if self.workers > 1:
            dist.broadcast_object_list(is_there, src=0)
        if not is_there[0]:
            teacher = self._taught_vectors(run, weights, captions, videos)
            if self.rank == 0:
                with store.writing(name) as path:
                    teacher.save(str(path))
            if self.workers > 1:
                dist.barrier()

        with local_copy(store.filesystem, store.path(name)) as path:
            return Teacher.load(str(path), captions, videos)

    def _taught_vectors(
        self,
        run: TeacherRun,
        weights: bytes,
        captions: list[str],
        videos: list[str],
    ) -> Teacher:
        """What the teacher's towers make of every caption and video that is trained on."""
        torch.manual_seed(run.seed)
        clip = load(run.clip.model, run.clip.pretrained)
        clip.requires_grad_(False)
        tokenize = tokenizer(clip, run.clip.context)
        with scratch_folder() as folder:
            file = folder / run.file
            file.write_bytes(weights)
            clip = load_tuned(clip, file)

        resolved = precision.resolve(self.settings.precision, self.device)
        retriever = Retriever(clip, precision=precision.apply(resolved))
        retriever = retriever.to(self.device).eval()
        embedder = Embedder(retriever, tokenize)

        def read_frames(share: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            # The middle frame of each segment, as a test sees them.
            return stack_frames(self.shards, share, run.frames, [None] * len(share))

        def tell(embedded: int, total: int) -> None:
            self._tell("embed for the teacher", "videos", embedded, total, "")

        video = over_workers(videos, lambda share: embedder.videos(share, read_frames, tell))
        text = over_workers(captions, embedder.texts)
        scale = float(clip.logit_scale.float().exp())
        return Teacher(captions, videos, text.cpu(), video.cpu(), retriever.pooling, scale)

    def _go_on(self, tuner: Tuner) -> float:
        """Bring the tuner to the last checkpoint, if any; returns the seconds that led there."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0.0

        with checkpoint.as_directory() as folder:
            tuner.load(Path(folder) / STATE)
            seconds = float((Path(folder) / SECONDS).read_text())

        total = self.settings.epochs * tuner.steps_per_epoch
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        self._say(f"going on from step {tuner.steps_done} of {total} with {workers}")
        return seconds

    def _steps(
        self,
        tuner: Tuner,
        batches: TrainingBatches,
        seconds: float,
    ) -> float:
        """All steps that are left, with a checkpoint and the curves up to it now and then.

        Returns `seconds` and those that the steps took.
        """
        total = self.settings.epochs * tuner.steps_per_epoch
        is_due = CheckpointClock(
            self.settings.checkpoint_every,
            tuner.steps_per_epoch,
            total,
        )
        watches_val = self.config.evaluate.each_epoch and "val" in self.splits
        curves: list[tuple[int, Mapping[str, float]]] = []

        while tuner.steps_done < total:
            for next_step in tuner.epoch(batches):
                # A checkpoint holds all steps that the tuner has taken: the numbers of the last one too.
                saves = is_due(tuner.steps_done)
                steps = [next_step]
                if saves:
                    steps += tuner.flush()

                for step in steps:
                    seconds += step.wait + step.seconds
                    self._tell(
                        "tune",
                        "steps",
                        step.number,
                        total,
                        f"loss {step.loss:.3f}",
                    )
                    numbers = _numbers(step, self.settings.batch_size)
                    curves.append((step.number, numbers))

                # The last epoch's come with everything else.
                last = steps[-1].number
                ends_epoch = last % tuner.steps_per_epoch == 0
                if watches_val and ends_epoch and last < total:
                    curves.append((last, self._val_curves()))

                if saves:
                    self._report(curves, tuner, seconds)
                    curves = []

        return seconds

    def _micro_batch(self, batches: TrainingBatches) -> int | None:
        """Videos that hold activations at once: as the settings say, or as many as the GPU has room for."""
        setting = self.settings.micro_batch
        if self.device.type != "cuda":
            return None if setting == "auto" else setting

        # One real batch tells the shapes of all.
        with closing(batches.epoch(0)) as reading:
            first = next(reading)
        like = moved_to(first, self.retriever.clip, self.device)
        needs = memory.estimate(self.retriever.train(), like)

        num_videos = len(first.videos)
        available = torch.cuda.get_device_properties(self.device).total_memory
        if setting != "auto":
            micro_batch = setting
        else:
            usable = int(memory.USABLE * available)
            fitting = needs.micro_batch(num_videos, usable) or num_videos

            # Where all fit everywhere, one pass is enough.
            least = self._least(fitting)
            micro_batch = None if least >= num_videos else least

        num_active = min(micro_batch or num_videos, num_videos)
        peak_gib = needs.bytes(num_active) / 2**30
        available_gib = available / 2**30
        at_once = ""
        if micro_batch is not None:
            at_once = f", with the activations of {micro_batch} at a time (micro_batch)"
        self._say(f"a batch of {num_videos} needs about {peak_gib:.1f} of {available_gib:.1f} GiB{at_once}")
        return micro_batch

    def _least(self, number: int) -> int:
        """The least of all workers' numbers: they must do the same."""
        if self.workers == 1:
            return number

        least = torch.tensor(number, device=self.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def source(self) -> Shards | prefix.Prefix:
        """Where to read training frames from.

        From the shards, or with `prefix_cache` from what the frozen blocks make of them: then each worker
        computes its share of what is missing.
        """
        stored_precision = self.settings.prefix_cache
        if not stored_precision:
            return self.shards

        plan = prefix.plan(
            self.retriever,
            self.shards,
            sorted(self.captions),
            stored_precision,
            below(self.config.storage or self.config.output, "prefix"),
        )
        if plan is None:
            return self.shards

        # Rank 0's list is everybody's: the first files may appear while others still look.
        missing = [plan.missing()]
        if self.workers > 1:
            dist.broadcast_object_list(missing, src=0)
        share = missing[0][self.rank :: self.workers]

        def tell(num_videos: int, total: int) -> None:
            self._tell(
                "run the frozen blocks",
                "videos",
                num_videos,
                total,
                "",
            )

        prefix.write(
            plan,
            share,
            self.retriever,
            self.shards,
            tell,
        )

        # Nobody reads before everything is written.
        if self.workers > 1:
            dist.barrier()
        return prefix.Prefix(plan, self.cache)

    def _val_curves(self) -> dict[str, float]:
        """The plain numbers alone; the last epoch's come with everything else, at the end."""
        numbers = self.val_numbers()
        return {names.val(name): numbers[name] for name in names.CURVES}

    def val_numbers(self) -> dict[str, float]:
        """Recall on the val split as it is now, without intervals."""
        return self._evaluator("val").recall(self._rows("val"))

    def _recall_of_stills(self) -> dict[str, float]:
        """What the quickstart's CLIP, tuned, still knows of the stills that it was pretrained on."""
        size = self.config.video.side
        world = self.config.shapes
        assert world is not None, "only the quickstart has a world of its own"
        recall = stills_recall(
            self.retriever,
            lambda rng, count: shapes.stills(rng, count, size),
            shapes.still_captions(),
            self.tokenize,
            frames=self.config.video.frames,
            seed=world.seed,
        )
        return {
            names.UPSTREAM_R1: recall.percent,
            names.low(names.UPSTREAM_R1): recall.low,
            names.high(names.UPSTREAM_R1): recall.high,
        }

    def _evaluator(self, split: str, shards: str | None = None) -> SplitEvaluator:
        """shards: of another config's split."""

        def tell(embedded: int, total: int) -> None:
            self._tell(
                f"embed the {split} split",
                "videos",
                embedded,
                total,
                "",
            )

        return SplitEvaluator(
            self.retriever,
            self.shards if shards is None else Shards(shards, self.cache),
            self.tokenize,
            self.config.video.frames,
            tell,
        )

    def _rows(self, split: str) -> pa.Table:
        """The rows of ANNOTATIONS of a split."""
        annotations = self.task.annotations
        is_of_split = pc.equal(annotations["split"], split)
        return annotations.filter(is_of_split)

    def _bank(self) -> list[str]:
        """All training captions."""
        bank = []
        for texts in self.captions.values():
            bank.extend(texts)
        return bank

    def _report(
        self,
        curves: list[tuple[int, Mapping[str, float]]],
        tuner: Tuner | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Hand the curves since last time and a checkpoint to Ray Train: every worker; rank 0 saves."""
        with scratch_folder() as folder:
            checkpoint = None
            if self.rank == 0:
                save_tuned(
                    folder / WEIGHTS,
                    self.retriever.clip,
                    self.task.run.pooling,
                )
                (folder / SECONDS).write_text(str(seconds))
                if tuner is not None:
                    tuner.save(folder / STATE)
                checkpoint = Checkpoint.from_directory(folder)

            # Ray waits here until every worker has reported.
            ray.train.report({"curves": curves}, checkpoint=checkpoint)

    def _say(self, line: str) -> None:
        """One line of the log, which the driver prints."""
        if self.rank == 0 and self._mailbox is not None:
            self._mailbox.put.remote(SAYS, "", 0, 0, line)

    def _tell(
        self,
        what: str,
        unit: str,
        count: int,
        total: int,
        words: str,
    ) -> None:
        """How far the work is, for the driver's progress bar."""
        if self.rank == 0 and self._mailbox is not None:
            self._mailbox.put.remote(what, unit, count, total, words)


class CheckpointClock:
    """Says after which steps a checkpoint is due; the same on every worker.

    every: a number of steps, or a time such as `5min` beside the end of each epoch, or None for each epoch.
    """

    def __init__(
        self,
        every: int | str | None,
        steps_per_epoch: int,
        total: int,
    ) -> None:
        self._steps = steps_per_epoch
        self._seconds = math.inf
        if isinstance(every, int):
            self._steps = every
        elif isinstance(every, str):
            self._seconds = interval_seconds(every)

        self._total = total
        self._last = time.monotonic()

    def __call__(self, steps_done: int) -> bool:
        """Whether to save now."""
        is_round = steps_done % self._steps == 0
        is_last = steps_done == self._total
        is_due = is_round or is_last or self._time_is_up(steps_done)
        if is_due:
            self._last = time.monotonic()
        return is_due

    def _time_is_up(self, steps_done: int) -> bool:
        if self._seconds == math.inf:
            return False

        is_up = time.monotonic() - self._last >= self._seconds
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return is_up

        # Clocks differ: rank 0 decides for all, and not after every step, as asking stops the GPUs.
        if steps_done % ASK_EVERY:
            return False
        answer = torch.tensor(int(is_up), device=get_device())
        dist.broadcast(answer, src=0)
        return bool(answer)


def first_sentence(error: Exception) -> str:
    """What an error says first."""
    message = str(error)
    if not message:
        return type(error).__name__

    sentence = message.split(". ")[0]
    return sentence.splitlines()[0]


def training_captions(annotations: pa.Table, shards: Shards) -> dict[str, list[str]]:
    """The captions of each training video that could be decoded."""
    is_training = pc.equal(annotations["split"], "train")
    is_decoded = pc.is_in(annotations["video"], shards.decoded())
    rows = annotations.filter(pc.and_(is_training, is_decoded))

    # column by column: an entry or a row for each of a million videos would take minutes
    captions: dict[str, list[str]] = {}
    for video, caption in zip(rows["video"].to_pylist(), rows["caption"].to_pylist(), strict=True):
        captions.setdefault(video, []).append(caption)
    return captions


def _numbers(step: Step, batch_size: int) -> dict[str, float]:
    """A step by the names that MLflow shows."""
    total_seconds = step.wait + step.seconds
    return {
        names.LOSS: step.loss,
        names.GRADIENT_NORM: step.grad_norm,
        names.LEARNING_RATE: step.lr,
        names.STEP_SECONDS: step.seconds,
        names.WAIT_SHARE: step.wait / total_seconds,
        names.THROUGHPUT: batch_size / total_seconds,
        names.STEP_MEMORY: step.memory / 2**30,
    }
