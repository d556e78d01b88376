"""What a Ray Train worker does, killed in the middle of an epoch, against the plain loop of one process."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import ray.train
import torch
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file
from support.task import listener, small_task, training_batches

from pipelines.tune.worker import WEIGHTS, work
from vopcore import clip as clips
from vopcore.methods import tune, tuned
from vopcore.retriever import Retriever
from vopcore.training.trainer import Tuner, train


@pytest.fixture
def task(tmp_path):
    return small_task(tmp_path)


def plain_loop(task):
    """The same tuning without Ray."""
    config, settings = task.config, task.run.train
    torch.manual_seed(config.seed)
    clip = tune(clips.load(config.clip.model), task.run.method, config.video.frames)
    batches = training_batches(task, clip)
    train(Tuner(Retriever(clip), settings, batches.steps_per_epoch, config.seed), batches, settings.epochs)
    return tuned(clip)


def killer(folder):
    """In the mailbox's place: notes each step, and kills its worker once, when step 4 is safe."""

    class Killer:
        def __init__(self):
            self.put = self

        def remote(self, what, unit, done, total, words):
            if what != "tune":
                return
            with (folder / "steps").open("a") as file:
                file.write(f"{done}/{total}\n")
            if done == 5 and not (folder / "killed").exists():
                wait_for(committed=2)
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def wait_for(committed):
        deadline = time.monotonic() + 60
        while len(checkpoints()) < committed:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # polling, not waiting for a guess

    def checkpoints():
        snapshots = (folder / "run").glob("checkpoint_manager*.json")
        return {name for path in snapshots for name in re.findall(r"checkpoint_\d[\d_.-]+", path.read_text())}

    return Killer()


def fit(task, folder, mailbox, workers, max_failures=1):
    """Tune as `task` says; returns the tuned weights."""
    result = TorchTrainer(
        work,
        train_loop_config={"task": task, "mailbox": mailbox},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(
            name="run", storage_path=str(folder), failure_config=FailureConfig(max_failures=max_failures)
        ),
    ).fit()
    with result.checkpoint.as_directory() as there:
        return load_file(Path(there) / WEIGHTS), result


@pytest.mark.long
def test_one_of_two_workers_killed_within_an_epoch_changes_no_bit_of_the_weights(own_ray, task, tmp_path):
    (tmp_path / "killed_once").mkdir()
    disturbed, _ = fit(task, tmp_path / "killed_once", killer(tmp_path / "killed_once"), workers=2)
    steps = [int(line.split("/")[0]) for line in (tmp_path / "killed_once" / "steps").read_text().split()]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    wanted, _ = fit(task, tmp_path / "undisturbed", listener(), workers=2)
    for name, value in wanted.items():
        assert torch.equal(disturbed[name], value), name
    alone = plain_loop(task)
    for name, value in alone.items():
        torch.testing.assert_close(wanted[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_a_worker_killed_within_an_epoch_goes_on_from_the_step_to_the_weights_of_the_plain_loop(
    own_ray, task, tmp_path
):
    weights, result = fit(task, tmp_path, killer(tmp_path), workers=1)
    steps = [int(line.split("/")[0]) for line in (tmp_path / "steps").read_text().split()]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    wanted = plain_loop(task)
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(weights[name], value), name
    assert result.return_value.metrics["params/trainable"] == sum(p.numel() for p in wanted.values())


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_workers(own_ray, task, tmp_path):
    """What an elastic run does when a node goes: the same batches, in other parts."""
    with pytest.raises(TrainingFailedError):
        fit(task, tmp_path, killer(tmp_path), workers=2, max_failures=0)
    weights, _ = fit(task, tmp_path, killer(tmp_path), workers=1)
    steps = [int(line.split("/")[0]) for line in (tmp_path / "steps").read_text().split()]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    for name, value in plain_loop(task).items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
