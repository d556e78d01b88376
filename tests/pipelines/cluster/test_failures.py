"""What Ray and Ray Train really raise, and what is left of it for people: the cause, in one line."""

import os

import pytest
import ray
import ray.data
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.train import ControllerError, FailureConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from pipelines.cluster.failures import is_lost_process, is_of_machines, reason_of
from pipelines.cluster.network import UnusableGPUError
from pipelines.command.exit_codes import CommandFailedError, exit_code_of
from pipelines.tune.driver import RunFailedError, fit
from pipelines.tune.worker import HopelessError
from vopcore.storage import StorageError

pytestmark = pytest.mark.usefixtures("own_ray")

AWAY = "host-7 cannot use s3://bucket/x: connection refused"
WRAPPERS = (
    "RayTaskError",
    "UserCodeException",
    "ActorDiedError",
    "TrainingFailed",
    "WorkerGroup",
    "ray::",
    "pid=",
)


@ray.remote(num_cpus=0, max_retries=0)
def task(error: Exception | None) -> None:
    if error is None:
        os._exit(1)
    raise error


@ray.remote(num_cpus=0, max_retries=0)
def task_of_a_task(error: Exception) -> None:
    ray.get(task.remote(error))


@ray.remote(num_cpus=0)
class Actor:
    def __init__(self, error: Exception | None = None) -> None:
        if error is not None:
            raise error

    def die(self) -> None:
        os._exit(1)


def of_a_task(error):
    ray.get(task.remote(error))


def of_a_task_of_a_task(error):
    ray.get(task_of_a_task.remote(error))


def of_an_actor_that_begins(error):
    ray.get(Actor.remote(error).die.remote())


def of_ray_data(error):
    def fail(batch):
        raise error

    ray.data.from_items([1]).map_batches(fail).materialize()


def of_ray_train(error, folder):
    def fail(settings):
        if error is None:
            os._exit(1)
        raise error

    TorchTrainer(
        fail,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            storage_path=str(folder), failure_config=FailureConfig(max_failures=0)
        ),
    ).fit()


def last_line(command, capsys) -> tuple[int, str]:
    code = exit_code_of(command)
    return code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("stage", [of_a_task, of_a_task_of_a_task, of_an_actor_that_begins, of_ray_data])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StorageError(AWAY), AWAY),
        (KeyError("k"), "KeyError: 'k'"),
        (OSError("no route\nto host"), "OSError: no route"),
    ],
)
def test_the_last_line_is_what_was_raised_wherever_it_was(stage, error, said, capsys):
    assert last_line(lambda: stage(error), capsys) == (1, f"error (exit code 1): {said}")


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("data.root: no such folder"), 2), (CommandFailedError("vop: diverged"), 1)],
)
def test_what_a_task_refuses_has_the_code_it_has_here(error, code, capsys):
    assert last_line(lambda: of_a_task(error), capsys) == (code, f"error (exit code {code}): {error}")


def test_the_last_line_of_a_worker_of_ray_train_is_what_it_raised(tmp_path, capsys):
    ended = last_line(lambda: of_ray_train(StorageError(AWAY), tmp_path), capsys)
    assert ended == (1, f"error (exit code 1): {AWAY}")


def test_checkpoints_that_can_go_nowhere_are_one_line(capsys):
    code, line = last_line(lambda: of_ray_train(KeyError("k"), "/proc/nowhere"), capsys)
    assert code == 1
    assert "/proc/nowhere" in line
    assert not any(word in line for word in WRAPPERS)


@pytest.mark.parametrize(
    "kill", [lambda folder: of_a_task(None), lambda folder: ray.get(Actor.remote().die.remote()), None]
)
def test_a_process_that_is_gone_is_said_in_plain_words_and_without_a_stack(kill, tmp_path, capsys):
    def end():
        kill(tmp_path) if kill else of_ray_train(None, tmp_path)

    assert exit_code_of(end) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    line = said.strip().splitlines()[-1]
    assert line.startswith("error (exit code 1): a process")
    assert "was ended from outside" in line
    assert not any(word in line for word in WRAPPERS)


def test_of_several_workers_the_one_that_raised_is_told_and_not_its_peers():
    class SeveralError(ray.exceptions.RayError):
        def __init__(self, failures):
            self.worker_failures = failures

    gone = ray.exceptions.ActorDiedError()
    echo = RuntimeError("[gloo] Connection closed by peer [192.0.2.1]:35067")
    own = StorageError(AWAY)
    assert reason_of(SeveralError({0: echo, 1: gone, 2: own})) == AWAY
    assert is_lost_process(SeveralError({0: echo, 1: gone}))
    assert is_of_machines(own)
    assert not is_of_machines(echo)


def test_an_error_without_a_message_is_its_name():
    assert reason_of(NotImplementedError()) == "NotImplementedError"


KILLED = OutOfMemoryError(  # as Ray's raylet words it
    "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7, ID: 8c) where"
    " the task (task ID: ffff, name=MapBatches(_task), pid=41, memory used=9.06GB) was running was 30.1GB /"
    " 31.4GB (0.958), which exceeds the memory usage threshold of 0.95.\nRefer to the documentation on how to"
    " address the out of memory issue: https://docs.ray.io/en/latest/ray-core/scheduling/"
    "ray-oom-prevention.html.\nTo adjust the kill threshold, set the environment variable"
    " `RAY_memory_usage_threshold` when starting Ray."
)


def of_task(error: Exception) -> RayTaskError:
    """An error as `ray.get` raises it: of the class of its cause too."""
    return RayTaskError("task", "Traceback (most recent call last):\n  ...", error).as_instanceof_cause()


def of_worker(error: Exception) -> WorkerGroupError:
    """An error as Ray Train raises it where the process of a worker is gone."""
    return WorkerGroupError("of rank 1", {1: WorkerHealthCheckFailedError("it does not answer", error)})


OF_MEMORY = [KILLED, of_task(KILLED), of_worker(KILLED), of_worker(of_task(KILLED))]


@pytest.mark.parametrize("error", OF_MEMORY, ids=range(len(OF_MEMORY)))
def test_a_process_that_the_memory_monitor_killed_is_named_in_one_line(error):
    assert reason_of(error) == (
        "a machine ran out of memory, and Ray ended the process that worked there: fewer CPUs per machine"
        " (ray start --num-cpus) or more memory help"
    )


class Failing:
    """In a trainer's place: it raises what Ray Train raises, and counts how often it was started."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.starts = 0

    def fit(self) -> None:
        self.starts += 1
        raise self.error


def fit_fails(error: Exception, kind: type[Exception]) -> tuple[str, int]:
    """What `fit` with three restarts says of an error, and how often it tried."""
    trainer = Failing(error)
    with pytest.raises(kind) as caught:
        fit(lambda: trainer, "vop", 3)
    return str(caught.value), trainer.starts


def test_a_tuning_worker_that_the_memory_monitor_killed_is_named_and_started_again(capsys):
    said, starts = fit_fails(of_worker(KILLED), RunFailedError)
    assert said == f"vop: {reason_of(KILLED)}"
    assert starts == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all("failed (a machine ran out of memory" in line for line in lines)


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError("of rank 0", {0: HopelessError("no use")}),
        WorkerGroupError(
            "of two", {0: RuntimeError("Connection closed by peer"), 1: HopelessError("no use")}
        ),
        ControllerError(of_task(UnusableGPUError("no use"))),
    ],
)
def test_what_no_restart_can_help_is_not_tried_again(error, capsys):
    assert fit_fails(error, HopelessError) == ("no use", 1)
    assert capsys.readouterr().err == ""
