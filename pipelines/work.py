"""What each Ray Train worker runs: build, attach, go on from the last checkpoint, train, embed, measure."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import torch
from ray.train import Checkpoint
from ray.train.torch import get_device, prepare_model

from pipelines.evaluate import Embedder, evaluate_split
from vopcore import clip as clips
from vopcore.batches import TrainingBatches
from vopcore.config import MethodRun, RunConfig
from vopcore.methods import save_tuned, tune
from vopcore.retriever import Retriever
from vopcore.shards import Shards
from vopcore.tuning import DivergedError, Step, Tuner, peak_memory

STATE, WEIGHTS, SECONDS = "state.pt", "tuned.safetensors", "seconds.txt"

Tell = Callable[[str, str, int, int, str], None]  # what, unit, done, total, words


@dataclass(frozen=True)
class Task:
    """All a worker needs to know; plain values, sent once."""

    config: RunConfig
    run: MethodRun
    annotations: pa.Table
    shards: str


def work(loop: dict[str, Any]) -> dict[str, Any]:
    """`run`; what would fail again on every restart, such as a loss that is NaN, is returned as `error`."""
    try:
        return run(loop)
    except (DivergedError, ValueError) as error:
        return {"error": str(error)}


def run(loop: dict[str, Any]) -> dict[str, Any]:
    """Tune and measure one method together with the other workers.

    Returns `metrics`: recall on the test split, that on val under `val/`, counts of parameters, seconds;
    `tags`: what the frozen CLIP was; and `predictions` (PREDICTIONS) of the test split.
    """
    task: Task = loop["task"]
    config, method, settings = task.config, task.run, task.run.train
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()

    def tell(what: str, unit: str, done: int, total: int, words: str) -> None:
        if rank == 0:
            loop["mailbox"].put.remote(what, unit, done, total, words)

    began = time.perf_counter()
    torch.manual_seed(config.seed)  # the method's own initial values
    clip = clips.load(config.clip.model, config.clip.pretrained)
    clip.requires_grad_(False)
    gpu = torch.cuda.get_device_name() if get_device().type == "cuda" else "none"
    tags = {"gpu": gpu, "activation": clips.activation(clip), "backbone_hash": clips.frozen_hash(clip)}
    tune(clip, method.method, config.video.frames)
    retriever = Retriever(clip, method.pooling, settings.learn_logit_scale, settings.precision)
    retriever.to(get_device())
    tokenize = clips.tokenizer(clip, config.clip.words)
    shards = Shards(task.shards)
    captions = training_captions(task.annotations, shards)
    spent = 0.0
    if settings.epochs and any(p.requires_grad for p in retriever.parameters()):
        batches = TrainingBatches(
            shards,
            captions,
            tokenize,
            frames=config.video.frames,
            batch_size=settings.batch_size,
            draw=settings.captions,
            seed=config.seed,
            repeat_videos=settings.repeat_videos,
            augment=settings.augment,
            rank=rank,
            workers=workers,
        )
        model = prepare_model(retriever) if workers > 1 else retriever
        tuner = Tuner(retriever, settings, batches.steps_per_epoch, config.seed, model)
        spent = _train(tuner, batches, task, rank, tell)
    else:
        _report(task, rank, clip)
    metrics = _counts(retriever)
    there = set(task.annotations["split"].unique().to_pylist())
    for split in (split for split in ("val", "test") if split in there):
        numbers, predictions = _measure(task, split, retriever, shards, captions, tokenize, tell)
        metrics |= numbers
    metrics |= {"seconds/tune": spent, "seconds/total": time.perf_counter() - began}
    metrics["memory/peak_mb"] = peak_memory(get_device()) / 2**20  # of its GPU, else of this process
    return {"metrics": metrics, "tags": tags, "predictions": predictions}


def _measure(
    task: Task,
    split: str,
    retriever: Retriever,
    shards: Shards,
    captions: dict[str, list[str]],
    tokenize: Callable[[list[str]], torch.Tensor],
    tell: Tell,
) -> tuple[dict[str, float], pa.Table]:
    embedder = Embedder(
        retriever,
        shards,
        tokenize,
        task.config.video.frames,
        lambda done, total: tell(f"embed the {split} split", "videos", done, total, ""),
    )
    rows = task.annotations.filter(pc.equal(task.annotations["split"], split))
    bank = [text for texts in captions.values() for text in texts]
    numbers, found = evaluate_split(
        embedder, retriever, shards, rows, bank, task.config.evaluate, task.config.seed
    )
    return {name if split == "test" else f"{split}/{name}": value for name, value in numbers.items()}, found


def _counts(retriever: Retriever) -> dict[str, float]:
    tuned = sum(p.numel() for p in retriever.parameters() if p.requires_grad)
    total = sum(p.numel() for p in retriever.parameters())
    return {"params/trainable": tuned, "params/total": total, "params/percent": 100 * tuned / total}


def training_captions(annotations: pa.Table, shards: Shards) -> dict[str, list[str]]:
    """The captions of each training video that could be decoded."""
    decoded = {video for video, entry in shards.videos.items() if entry.num_frames}
    captions: dict[str, list[str]] = {}
    for row in annotations.filter(pc.equal(annotations["split"], "train")).to_pylist():
        if row["video"] in decoded:
            captions.setdefault(row["video"], []).append(row["caption"])
    return captions


def _train(tuner: Tuner, batches: TrainingBatches, task: Task, rank: int, tell: Tell) -> float:
    """Train on from the last checkpoint; returns the seconds of tuning, all attempts together."""
    spent = 0.0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            tuner.load(Path(folder) / STATE)
            spent = float((Path(folder) / SECONDS).read_text())
    total = task.run.train.epochs * tuner.steps_per_epoch
    every = task.run.train.checkpoint_every or tuner.steps_per_epoch
    steps: list[Step] = []
    while tuner.steps_done < total:
        for step in tuner.epoch(batches):
            steps.append(step)
            spent += step.wait + step.seconds
            tell("tune", "steps", step.number, total, f"loss {step.loss:.3f}")
            if step.number % every == 0 or step.number == total:
                _report(task, rank, tuner.retriever.clip, steps, tuner, spent)
                steps = []
    return spent


def _report(
    task: Task,
    rank: int,
    clip: torch.nn.Module,
    steps: Sequence[Step] = (),
    tuner: Tuner | None = None,
    spent: float = 0.0,
) -> None:
    """Hand the curves since last time and a checkpoint to Ray Train; every worker calls it, rank 0 saves."""
    curves = [(step.number, _numbers(step, task.run.train.batch_size)) for step in steps]
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0:
            save_tuned(Path(folder) / WEIGHTS, clip, task.run.pooling)
            (Path(folder) / SECONDS).write_text(str(spent))
            if tuner is not None:
                tuner.save(Path(folder) / STATE)
        checkpoint = Checkpoint.from_directory(folder) if rank == 0 else None
        ray.train.report({"curves": curves}, checkpoint=checkpoint)


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
