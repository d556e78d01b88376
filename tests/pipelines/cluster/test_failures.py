"""What Ray and Ray Train really raise, and what is left of it for people: the cause, in one line."""

import os

import pytest
import ray
import ray.data
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines.cluster.failures import is_lost_process, is_of_machines, reason_of
from pipelines.command.exit_codes import CommandFailedError, exit_code_of
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
