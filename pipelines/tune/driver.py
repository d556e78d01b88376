"""Ray Train, seen from the driver: tune one method over the workers, from the last checkpoint if any."""

import sys
from collections.abc import Callable
from typing import Any

import ray
import ray.actor
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from pipelines import track
from pipelines.cluster.machines import say_what_is_missing
from pipelines.cluster.network import OverRaysNetwork
from pipelines.command.exit_codes import CommandFailedError
from pipelines.command.progress import remote_bars
from pipelines.tune.worker import Task, work
from vopcore.config import MethodRun, RunConfig
from vopcore.storage import below

TIMEOUT = 300  # seconds until a worker whose peers are gone gives up


class RunFailedError(CommandFailedError):
    """A tuning run ended without a result; one line says why."""


def tune(
    config: RunConfig, run: MethodRun, task: Task, key: str, store: track.RunStore, run_id: str
) -> dict[str, Any]:
    """Tune and measure one method; returns what `work` does, and the last `checkpoint`.

    Raises RunFailedError.
    """
    resources = config.resources

    def trainer(mailbox: ray.actor.ActorHandle) -> TorchTrainer:
        """Goes on from the last checkpoint under this key."""
        return TorchTrainer(
            work,
            train_loop_config={"task": task, "mailbox": mailbox},
            torch_config=OverRaysNetwork(timeout_s=TIMEOUT, gpu=resources.gpu),
            scaling_config=ScalingConfig(
                num_workers=(resources.workers, resources.max_workers)
                if resources.max_workers
                else resources.workers,
                use_gpu=resources.gpu,
                resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": int(resources.gpu)},
            ),
            run_config=ray.train.RunConfig(
                name=key,
                storage_path=below(config.storage or config.output, "runs"),
                failure_config=FailureConfig(max_failures=0),  # `_fit` counts them
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                callbacks=[Curves(store, run_id)],
            ),
        )

    with remote_bars(run.name) as mailbox, say_what_is_missing(resources):
        result = _fit(lambda: trainer(mailbox), run.name, resources.max_failures)
    if "error" in result.return_value:
        kept = f"; the last checkpoint before it is {result.checkpoint.path}" if result.checkpoint else ""
        raise RunFailedError(f"{run.name}: {result.return_value['error']}{kept}")
    return result.return_value | {"checkpoint": result.checkpoint}


def _fit(trainer: Callable[[], TorchTrainer], name: str, max_failures: int) -> ray.train.Result:
    """Train to the end, with at most `max_failures` restarts after failures of the code.

    A machine that is gone (a spot instance, a node that lost its power) is no failure of the code: a long run
    sees many. Raises RunFailedError.
    """
    failures = 0
    while True:
        machines = _machines()
        try:
            return trainer().fit()
        except SystemExit:  # Ray's answer to Ctrl-C, with code 0
            raise KeyboardInterrupt from None
        except TrainingFailedError as error:
            reason = _last_line(error)
            if machines - _machines():
                print(f"{name}: a machine is gone; going on from the last checkpoint", file=sys.stderr)
                continue

            failures += 1
            if failures > max_failures:
                raise RunFailedError(f"{name}: {reason}") from error
            print(f"{name}: failed ({reason}); restart {failures} of {max_failures}", file=sys.stderr)


def _machines() -> set[str]:
    """The nodes that are alive now."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _last_line(error: TrainingFailedError) -> str:
    """What the first worker that failed said last."""
    causes = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(causes.values()))).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


class Curves(ray.train.UserCallback):
    """Logs each reported epoch once, from the controller; also where a worker died and repeated it."""

    def __init__(self, store: track.RunStore, run_id: str) -> None:
        self._store, self._run_id = store, run_id

    def after_report(
        self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Ray calls this when all workers have reported."""
        track.log_training(self._store, self._run_id, metrics[0]["curves"])
