"""One worker and two, under torchrun and under Ray Train: wall time of a step at the same global batch.

    python tests/benchmarks/bench_scaling.py [rounds]

A CLIP of 6 layers, 256 wide, with vop over random frames of 64 pixels; one thread a worker; checkpoints each
epoch under Ray, as always. From the end of the first epoch, in which Ray's own processes still start, to the
end of the last one on worker 0; kinds take turns, and of each the least of all rounds counts. Needs two CPU
cores that nobody else uses. Ray has a dozen processes of its own: with one worker they have a core, with two
they share the workers' cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vopcore import clip as clips
from vopcore.config import MethodRun, RunConfig, Train
from vopcore.config.sections import Backbone, Data, Resources, Video
from vopcore.datasets import ANNOTATIONS
from vopcore.methods import METHODS, tune
from vopcore.retriever import Retriever
from vopcore.shards import Entry, Layout, Shards, write_shard
from vopcore.storage import Store
from vopcore.training.batches import TrainingBatches
from vopcore.training.trainer import Tuner, train

ROOT = Path(__file__).parents[2]
SIZE, FRAMES, VIDEOS, EPOCHS = 64, 8, 192, 6
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": 6, "width": 256, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
}
SETTINGS = Train(epochs=EPOCHS, batch_size=32, lr=1e-3)


def main(rounds: int) -> None:
    """Print the seconds of a step of each kind, and the ratios."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        make_shards(Path(folder) / "shards")
        Path(folder, "model.json").write_text(json.dumps(MODEL))
        kinds = {
            f"{number}, {name}": (run, workers)
            for number, workers in {"one": 1, "two": 2}.items()
            for name, run in {"torchrun": torchrun, "Ray Train": under_ray}.items()
        }
        best = dict.fromkeys(kinds, float("inf"))
        for _ in range(rounds):
            for kind, (run, workers) in kinds.items():
                seconds = run(folder, workers)
                best[kind] = min(best[kind], seconds)
                print(f"{kind:16}{1000 * seconds:8.1f} ms a step", flush=True)
    print(f"two workers: {best['one, torchrun'] / best['two, torchrun']:.2f} times as fast as one")
    for number in ("one", "two"):
        more = 100 * (best[f"{number}, Ray Train"] / best[f"{number}, torchrun"] - 1)
        print(f"Ray Train over torchrun, {number}: {more:+.1f} %")


def make_shards(folder: Path) -> None:
    """Random frames."""
    rng, layout = np.random.default_rng(0), Layout(SIZE, "raw")
    rows = [
        (
            Entry(video=f"v{i:03}", status="ok", num_frames=FRAMES, times=[0.0] * FRAMES),
            rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8),
        )
        for i in range(VIDEOS)
    ]
    write_shard(Store(str(folder)), 0, layout, rows)


def torchrun(folder: str, workers: int) -> float:
    """Seconds of a step of the plain loop."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    subprocess.run([*command, __file__, "worker", folder], check=True, env=environment())
    return json.loads(Path(folder, "seconds.json").read_text())


def worker(folder: str) -> None:
    """One process of the plain loop."""
    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    shards = Shards(f"{folder}/shards")
    torch.manual_seed(0)
    clip = tune(clips.load(f"{folder}/model.json"), METHODS["vop"](), FRAMES)
    retriever = Retriever(clip)
    batches = TrainingBatches(
        shards,
        {video: ["a red ball"] for video in shards.videos},
        clips.tokenizer(clip, 16),
        frames=FRAMES,
        batch_size=SETTINGS.batch_size,
        draw="one",
        seed=0,
        rank=rank,
        workers=workers,
    )
    model = DistributedDataParallel(retriever) if workers > 1 else retriever
    ends: list[float] = []
    tuner = Tuner(retriever, SETTINGS, batches.steps_per_epoch, 0, model)
    train(tuner, batches, EPOCHS, lambda step: ends.append(time.perf_counter()))
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(seconds_per_step(ends)))
    dist.destroy_process_group()


def seconds_per_step(ends: list[float]) -> float:
    """Of all epochs but the first; `ends`: when each step ended."""
    first = len(ends) // EPOCHS - 1
    return (ends[-1] - ends[first]) / (len(ends) - 1 - first)


def under_ray(folder: str, workers: int) -> float:
    """Seconds of a step of Ray Train's workers, in a process of its own."""
    subprocess.run([sys.executable, __file__, "ray", folder, str(workers)], check=True, env=environment())
    return json.loads(Path(folder, "seconds.json").read_text())


def driver(folder: str, workers: int) -> None:
    """Tune with Ray Train."""
    import ray
    import ray.train
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.tune.worker import Task, work

    run = MethodRun(name="vop", method=METHODS["vop"](), train=SETTINGS)
    config = RunConfig(
        name="scaling",
        output=folder,
        data=Data(dataset="folder", root=folder),
        video=Video(frames=FRAMES, size=SIZE),
        clip=Backbone(model=f"{folder}/model.json", pretrained=None, words=16),
        methods=(run,),
        resources=Resources(workers=workers),
    )
    rows = [("train", f"v{i:03}", "", None, None, "a red ball") for i in range(VIDEOS)]
    rows += [("test", "v000", "", None, None, "a red ball")]
    columns = [
        pa.array(c, field.type) for c, field in zip(zip(*rows, strict=True), ANNOTATIONS, strict=False)
    ]
    columns.append(pa.nulls(len(rows), ANNOTATIONS.field("sentences").type))
    task = Task(config, run, pa.table(columns, schema=ANNOTATIONS), f"{folder}/shards")

    class Clock:
        """In the mailbox's place: when each step ended."""

        def __init__(self) -> None:
            self.put, self.ends = self, []

        def remote(self, what: str, unit: str, done: int, total: int, words: str) -> None:
            if what == "tune":
                self.ends.append(time.perf_counter())
                if done == total:
                    Path(folder, "seconds.json").write_text(json.dumps(seconds_per_step(self.ends)))

    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray.init(
        _temp_dir=f"{folder}/ray", include_dashboard=False, num_cpus=2, runtime_env={"env_vars": variables}
    )
    TorchTrainer(
        work,
        train_loop_config={"task": task, "mailbox": Clock()},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(name=f"run{time.time_ns()}", storage_path=folder),
    ).fit()
    ray.shutdown()


def environment() -> dict[str, str]:
    """One thread a worker."""
    return os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", folder]:
            worker(folder)
        case ["ray", folder, workers]:
            driver(folder, int(workers))
        case other:
            main(int(other[0]) if other else 3)
