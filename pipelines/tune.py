"""Ray Train: tune one method over the workers, then measure it on the test split.

The driver calls `tune`; every worker runs `work`. After a worker, a node or the driver dies, training goes on
from the last checkpoint.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model

from pipelines import track
from pipelines.evaluate import evaluate_split
from pipelines.progress import remote_bars
from vopcore import clip as clips
from vopcore.batches import TrainingBatches
from vopcore.config import MethodRun, RunConfig, fingerprint
from vopcore.methods import save_tuned
from vopcore.methods import tune as attach
from vopcore.retriever import Retriever
from vopcore.shards import Shards
from vopcore.tuning import Step, Tuner

STATE, WEIGHTS, SECONDS = "state.pt", "tuned.safetensors", "seconds.txt"
TIMEOUT = 300  # seconds until a worker whose peers are gone gives up


@dataclass(frozen=True)
class Task:
    """All a worker needs to know; plain values, sent once."""

    config: RunConfig
    run: MethodRun
    annotations: pa.Table
    shards: str
    mailbox: Any


def run_key(config: RunConfig, run: MethodRun, annotations: pa.Table, shards: str) -> str:
    """Names a run by what decides its numbers: the same settings and data continue it."""
    decides = {
        "method": asdict(run.method),
        "run": run.model_dump(exclude={"method"}),
        "frames": config.video.frames,
        "clip": config.clip.model_dump(),
        "workers": config.resources.workers,
        "shards": Path(shards).name,
        "data": fingerprint(annotations.drop_columns("path").to_pylist()),
    }
    label = f"-{config.run}" if config.run else ""
    return f"{run.name}-s{config.seed}{label}-{fingerprint(decides)}"


def tune(
    config: RunConfig, run: MethodRun, annotations: pa.Table, shards: str, store: track.Store, run_id: str
) -> dict:
    """Tune and measure one method; returns its metrics, counts and seconds. Raises TrainingFailedError."""
    key = run_key(config, run, annotations, shards)
    with remote_bars(run.name) as mailbox:
        trainer = TorchTrainer(
            work,
            train_loop_config={"task": Task(config, run, annotations, shards, mailbox)},
            torch_config=TorchConfig(timeout_s=TIMEOUT),
            scaling_config=ScalingConfig(
                num_workers=config.resources.workers,
                use_gpu=config.resources.gpu,
                resources_per_worker={
                    "CPU": config.resources.cpus_per_worker,
                    "GPU": int(config.resources.gpu),
                },
            ),
            run_config=ray.train.RunConfig(
                name=key,
                storage_path=f"{config.output}/runs",
                failure_config=FailureConfig(max_failures=config.resources.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                callbacks=[Curves(store, run_id)],
            ),
        )
        result = trainer.fit()
    with result.checkpoint.as_directory() as folder:
        track.log_files(store, run_id, [Path(folder) / WEIGHTS], "tuned")
    return result.return_value


class Curves(ray.train.UserCallback):
    """Logs each reported epoch once, from the controller; also where a worker died and repeated it."""

    def __init__(self, store: track.Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id

    def after_report(
        self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Ray calls this when all workers have reported."""
        track.log_curves(self._store, self._run_id, metrics[0]["curves"])


def work(loop: dict[str, Any]) -> dict[str, float]:
    """What each worker runs: build, attach, go on from the last checkpoint, train, embed, measure."""
    task: Task = loop["task"]
    config, run = task.config, task.run
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    began = time.perf_counter()
    torch.manual_seed(config.seed)  # the method's own initial values
    clip = clips.load(config.clip.model, config.clip.pretrained)
    attach(clip, run.method, config.video.frames)
    retriever = Retriever(clip, run.pooling, run.train.learn_logit_scale).to(get_device())
    tokenize = clips.tokenizer(clip, config.clip.words)
    shards = Shards(task.shards)
    spent = 0.0
    if any(p.requires_grad for p in retriever.parameters()):
        batches = TrainingBatches(
            shards,
            training_captions(task.annotations, shards),
            tokenize,
            frames=config.video.frames,
            batch_size=run.train.batch_size,
            draw=run.train.captions,
            seed=config.seed,
            rank=rank,
            workers=workers,
        )
        model = prepare_model(retriever) if workers > 1 else retriever
        tuner = Tuner(retriever, run.train, batches.steps_per_epoch, config.seed, model)
        spent = _train(tuner, batches, task, rank)
    else:
        _report(task, rank, retriever.clip)
    metrics = evaluate_split(
        retriever,
        shards,
        task.annotations.filter(pc.equal(task.annotations["split"], "test")),
        tokenize,
        frames=config.video.frames,
        seed=config.seed,
        step=lambda done, total: _tell(task, rank, "embed the test split", "videos", done, total),
    )
    tuned = sum(p.numel() for p in retriever.parameters() if p.requires_grad)
    total = sum(p.numel() for p in retriever.parameters())
    counts = {"params/trainable": tuned, "params/total": total, "params/percent": 100 * tuned / total}
    seconds = {"seconds/tune": spent, "seconds/total": time.perf_counter() - began}
    return metrics.to_dict() | counts | seconds


def training_captions(annotations: pa.Table, shards: Shards) -> dict[str, list[str]]:
    """The captions of each training video that could be decoded."""
    decoded = {video for video, entry in shards.videos.items() if entry.num_frames}
    captions: dict[str, list[str]] = {}
    for row in annotations.filter(pc.equal(annotations["split"], "train")).to_pylist():
        if row["video"] in decoded:
            captions.setdefault(row["video"], []).append(row["caption"])
    return captions


def _train(tuner: Tuner, batches: TrainingBatches, task: Task, rank: int) -> float:
    """Epoch by epoch from the last checkpoint; returns the seconds of tuning, all attempts together."""
    spent = 0.0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            tuner.load(Path(folder) / STATE)
            spent = float((Path(folder) / SECONDS).read_text())
    total = task.run.train.epochs * tuner.steps_per_epoch
    while tuner.epochs_done < task.run.train.epochs:
        began, steps = time.perf_counter(), []
        for step in tuner.epoch(batches):
            steps.append(step)
            _tell(task, rank, "tune", "steps", step.number, total, f"loss {step.loss:.3f}")
        spent += time.perf_counter() - began
        _report(task, rank, tuner.retriever.clip, steps, tuner, spent)
    return spent


def _report(
    task: Task,
    rank: int,
    clip: torch.nn.Module,
    steps: Sequence[Step] = (),
    tuner: Tuner | None = None,
    spent: float = 0.0,
) -> None:
    """Hand the curves of an epoch and a checkpoint to Ray Train; every worker calls it, rank 0 saves."""
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
    }


def _tell(task: Task, rank: int, what: str, unit: str, done: int, total: int, words: str = "") -> None:
    if rank == 0:
        task.mailbox.put.remote(what, unit, done, total, words)
