"""What a long run holds: python tests/benchmarks/stress_epochs.py FOLDER [epochs]

vop_p on a tiny CLIP over 200 epochs, a checkpoint and a point of every curve after each: first the trainer
alone in this process, then the whole tuning on Ray Train, whose driver, controller and worker are looked at
from outside. Memory that nobody else holds (USS), descriptors and threads at five moments; the last column is
how much memory grew over the second half, per epoch.
"""

import gc
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil  # noqa: E402
import torch  # noqa: E402
from support.local_ray import local_ray  # noqa: E402
from support.task import small_task, training_batches  # noqa: E402

from pipelines import track  # noqa: E402
from pipelines.tune import driver  # noqa: E402
from pipelines.tune.worker import Task  # noqa: E402
from vopcore import clip as clips  # noqa: E402
from vopcore.methods import tune  # noqa: E402
from vopcore.retriever import Retriever  # noqa: E402
from vopcore.training.trainer import Tuner  # noqa: E402

Sample = tuple[float, int, int]  # MiB that nobody else holds, descriptors, threads
LOOKS = 5  # columns of the table

WHO = {"controller": "TrainController", "worker": "RayTrainWorker"}


def sample(process: psutil.Process) -> Sample:
    """What a process holds now."""
    return process.memory_full_info().uss / 2**20, process.num_fds(), process.num_threads()


def in_process(task: Task) -> list[Sample]:
    """The trainer alone: a sample after each epoch."""
    config, settings = task.config, task.run.train
    clip = tune(clips.load(config.clip.model), task.run.method, config.video.frames)
    batches = training_batches(task, clip)
    tuner = Tuner(Retriever(clip), settings, batches.steps_per_epoch, config.seed)
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(settings.epochs):
            for _step in tuner.epoch(batches):
                pass
            tuner.save(Path(folder) / "state.pt")
            gc.collect()
            samples.append(sample(psutil.Process()))
    return samples


def on_ray(task: Task, folder: Path) -> dict[str, list[Sample]]:
    """The whole tuning: samples of driver, controller and worker, one a second."""
    store = track.open_store(None, "epochs", folder)
    run_id = track.start_run(store, "key", "vop_p", {}, {})
    samples: dict[str, list[Sample]] = {"driver": [], "controller": [], "worker": []}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(1.0):
            for who, process in processes().items():
                try:
                    samples[who].append(sample(process))
                except psutil.NoSuchProcess:
                    continue

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        driver.tune_on_ray(task.config, task.run, task, "key", store, run_id)
    finally:
        ended.set()
        watcher.join()
    return samples


def processes() -> dict[str, psutil.Process]:
    """This one, and those of Ray Train below it."""
    found = {"driver": psutil.Process()}
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        for who, word in WHO.items():
            if word in command:
                found[who] = process
    return found


def row(who: str, samples: list[Sample], epochs: int) -> str:
    """A line of the table."""
    places = [round(look * (len(samples) - 1) / (LOOKS - 1)) for look in range(LOOKS)]
    looks = [samples[place] for place in places]
    columns = [" ".join(f"{look[kind]:.0f}" for look in looks) for kind in range(3)]
    half = samples[len(samples) // 2 :]
    growth = 1024 * (half[-1][0] - half[0][0]) / (epochs / 2)
    return f"| {who} | {columns[0]} | {columns[1]} | {columns[2]} | {growth:.1f} |"


def main(folder: Path, epochs: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    task = with_epochs(small_task(scratch), epochs)
    print("| process | MiB of its own | descriptors | threads | KiB per epoch in the second half |")
    print("|---|---|---|---|---|")
    print(row("trainer alone", in_process(task), epochs), flush=True)
    with local_ray():
        for who, samples in on_ray(task, scratch).items():
            print(row(who, samples, epochs), flush=True)


def with_epochs(task: Task, epochs: int) -> Task:
    """The same task for longer."""
    train = task.run.train.model_copy(update={"epochs": epochs, "checkpoint_every": None})
    run = task.run.model_copy(update={"train": train})
    config = task.config.model_copy(update={"methods": (run,)})
    return Task(config, run, task.annotations, task.shards)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
