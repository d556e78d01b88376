"""Ray Train, seen from the driver: tune one method over the workers, from the last checkpoint if any."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
import ray.actor
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from pipelines import track
from pipelines.cluster.failures import cause_of, reason_of
from pipelines.cluster.machines import has_lost_machine, live_machines, say_what_is_missing
from pipelines.cluster.network import OverRaysNetwork, UnusableGPUError
from pipelines.command.exit_codes import CommandFailedError
from pipelines.command.progress import remote_bars
from pipelines.tune import snapshot
from pipelines.tune.worker import HopelessError, Task, WorkerResult, work
from vopcore.config import MethodRun, RunConfig
from vopcore.storage import Store, below

# What fails again on every restart.
HOPELESS = (HopelessError, UnusableGPUError)

# Seconds until a worker whose peers are gone gives up.
TIMEOUT = 300


class RunFailedError(CommandFailedError):
    """A tuning run ended without a result; one line says why."""


def tune_on_ray(
    config: RunConfig,
    run: MethodRun,
    task: Task,
    key: str,
    store: track.RunStore,
    run_id: str,
) -> tuple[WorkerResult, Checkpoint]:
    """Tune and measure one method; returns what rank 0 has measured, and the last checkpoint.

    key: the run goes on from the last checkpoint under it. store, run_id: where its curves go. Raises
    RunFailedError.
    """
    resources = config.resources
    num_workers: int | tuple[int, int] = resources.workers
    if resources.max_workers:
        num_workers = (resources.workers, resources.max_workers)

    # Apart, not as one address: Ray would decode `%20` in it and end it at a `#`.
    runs = Store(below(config.storage or config.output, "runs"))

    def trainer(mailbox: ray.actor.ActorHandle) -> TorchTrainer:
        """Goes on from the last checkpoint under this key."""
        snapshot.mend(runs.child(key))
        loop: Any = work  # what it returns is the run's outcome, which Ray's types do not know
        return TorchTrainer(
            loop,
            train_loop_config={"task": task, "mailbox": mailbox},
            torch_config=OverRaysNetwork(
                timeout_s=TIMEOUT,
                gpu=resources.gpu,
                mailbox=mailbox,
            ),
            scaling_config=ScalingConfig(
                num_workers=num_workers,  # type: ignore[arg-type]  # (least, most) is no type of Ray's
                use_gpu=resources.gpu,
                resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": int(resources.gpu)},
            ),
            run_config=ray.train.RunConfig(
                name=key,
                storage_path=runs.root,
                storage_filesystem=runs.filesystem,
                # `fit` counts failures: not all of them are the code's.
                failure_config=FailureConfig(max_failures=0),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                callbacks=[Curves(store, run_id, runs.child(key))],  # type: ignore[list-item]  # typed for Ray Tune
            ),
        )

    try:
        with remote_bars(run.name) as mailbox, say_what_is_missing(resources, _asks(mailbox)):
            result = fit(
                lambda: trainer(mailbox),
                run.name,
                resources.max_failures,
            )
    except HopelessError as error:
        reason = f"{run.name}: {error}"
        if path := _last_checkpoint(runs, key):
            reason += f"; the last checkpoint before it is {path}"
        raise RunFailedError(reason) from error

    outcome: WorkerResult = getattr(result, "return_value")  # noqa: B009 - not in Ray's types
    assert result.checkpoint is not None, "a worker that has ended has saved one"
    return outcome, result.checkpoint


def _last_checkpoint(runs: Store, key: str) -> str | None:
    """Where the last checkpoint of a run is; None where it has none."""
    with suppress(RuntimeError):  # the run has not come so far as to have a folder
        result = ray.train.Result.from_path(f"{runs.root}/{key}", runs.filesystem)
        if result.checkpoint is not None:
            return result.checkpoint.path
    return None


def _asks(mailbox: Any) -> Callable[[], bool]:  # noqa: ANN401 - a handle of Ray's
    """Whether the run has its workers; where the mailbox is gone nobody can say, and nothing is said."""

    def has_workers() -> bool:
        with suppress(Exception):
            return ray.get(mailbox.has_workers.remote(), timeout=TIMEOUT)
        return True

    return has_workers


def fit(
    trainer: Callable[[], TorchTrainer],
    name: str,
    max_failures: int,
) -> ray.train.Result:
    """Train to the end, with at most `max_failures` restarts after failures of the code.

    A machine that is gone (a spot instance, a node that lost its power) is no failure of the code: a long run
    sees many. Raises RunFailedError, and HopelessError where a worker has met what no restart can help.
    """
    failures = 0
    while True:
        machines = live_machines()
        try:
            return trainer().fit()
        except SystemExit:
            # Ray's answer to Ctrl-C, with code 0.
            raise KeyboardInterrupt from None
        except TrainingFailedError as error:
            cause = cause_of(error)
            if isinstance(cause, HOPELESS):
                raise HopelessError(str(cause)) from error

            reason = reason_of(error)
            if has_lost_machine(machines):
                print(
                    f"{name}: a machine is gone; going on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                continue

            failures += 1
            if failures > max_failures:
                raise RunFailedError(f"{name}: {reason}") from error
            print(
                f"{name}: failed ({reason}); restart {failures} of {max_failures}",
                file=sys.stderr,
                flush=True,
            )


class Curves(ray.train.UserCallback):
    """Logs each reported epoch once, from the controller; also where a worker died and repeated it.

    run: the folder of Ray's checkpoints, whose list is kept.
    """

    def __init__(self, store: track.RunStore, run_id: str, run: Store) -> None:
        self._store = store
        self._run_id = run_id
        self._run = run

    def after_report(
        self,
        run_context: object,
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Ray calls this when all workers have reported."""
        with suppress(OSError):  # a full disk, which ends what has to be written there, not this copy
            snapshot.keep(self._run)

        # All workers have the same curves.
        curves = metrics[0]["curves"]
        track.log_training(self._store, self._run_id, curves)
