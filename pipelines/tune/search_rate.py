"""A learning rate that nobody has to guess: Ray Tune's ASHA over a log range, judged on the val split alone.

A trial tunes with one rate in one process, which takes whole batches and follows the schedule of the run, and
is measured on val after each epoch. Of those that have come to epoch 1, 3, 9, ... one goes on only if it is
in the best third (successive halving, https://arxiv.org/abs/1810.05934). All read the same shards, and what
they share, frozen blocks' outputs and a teacher's vectors, is computed before the first begins.

Which trials are ended early depends on which come first, so two searches of one seed try the same rates, draw
the same curves, and may still end with different ones. What a trial has found is kept in files of its own.
Ray Tune does not keep what ASHA has seen, so a search that was killed begins anew, and each trial first tells
again what its file holds, without a step.
"""

import csv
import io
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from pipelines.cluster.failures import reason_of
from pipelines.tune.driver import RunFailedError
from pipelines.tune.worker import HOPELESS, Task, Worker, hopeless_reason
from vopcore.config import RunConfig
from vopcore.config.sections import Search
from vopcore.metrics import names
from vopcore.storage import Store, local_copy
from vopcore.training.trainer import DivergedError, Tuner

KEEPS = 3  # one of so many goes on

TUNES_OWN = "tune"  # a folder of Ray Tune's own, which nothing is read from

# Of what a trial tells Ray Tune.
RECALL = "recall"
FAILURE = "failure"

SETTINGS = {  # of Ray Tune
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Ctrl-C only ends the search, and the run goes on with it
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files that nobody reads
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",  # trials wait for their turn, however long
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints at `verbose=0` too
}

Ending = Literal["", "finished", "stopped", "diverged"]


@dataclass(frozen=True)
class TrialCurve:
    """What a trial has found: a number per epoch that it has tuned, t2v R@1 on val and seconds.

    ending: empty while it may go on; `stopped` is ASHA's.
    """

    rate: float
    recall: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ending: Ending = ""


@dataclass(frozen=True)
class FoundRate:
    """The outcome of a search. curves: of all its trials, from the lowest rate to the highest."""

    rate: float
    curves: Sequence[TrialCurve]

    @property
    def metrics(self) -> dict[str, float]:
        """The choice and what it cost, by the names that MLflow shows."""
        return {
            names.FOUND_RATE: self.rate,
            names.SEARCH_EPOCHS: sum(len(curve.recall) for curve in self.curves),
            names.SEARCH_SECONDS: sum(sum(curve.seconds) for curve in self.curves),
        }

    def as_csv(self) -> str:
        """A line per trial."""
        epochs = max(len(curve.recall) for curve in self.curves)
        header = [
            "lr",
            "ending",
            "seconds",
            "val_t2v_R1",
            *(f"epoch_{number + 1}" for number in range(epochs)),
        ]
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(header)
        for curve in self.curves:
            recall = [round(number, 3) for number in curve.recall]
            seconds = round(sum(curve.seconds), 1)
            lines.writerow([curve.rate, curve.ending, seconds, recall[-1], *recall])
        return text.getvalue()


def search_rate(task: Task, folder: Store) -> FoundRate:
    """Find the learning rate of a run; goes on where `folder` holds what the same search has left.

    task: its run is to be searched, and its annotations have a val split. Raises RunFailedError.
    """
    run = task.run
    rates = drawn_rates(run.train.search, task.config.seed)
    trials = TrialFiles(folder)
    open_trials = [number for number, rate in enumerate(rates) if not trials.read(number, rate).ending]
    if open_trials:
        print(f"{run.name}: {len(rates)} learning rates, {len(open_trials)} of them not ended", flush=True)
        _compute_what_is_shared(task, rates[0])
        _run_trials(task, rates, trials)

    curves = [trials.read(number, rate) for number, rate in enumerate(rates)]
    curves.sort(key=lambda curve: curve.rate)
    healthy = [curve for curve in curves if curve.ending != "diverged"]
    if not healthy:
        raise RunFailedError(f"{run.name}: all {len(rates)} learning rates diverged; lower train.search.most")

    best = max(healthy, key=_worth)
    print(f"{run.name}: learning rate {best.rate:.3g} is kept: val t2v R@1 {best.recall[-1]:.1f}", flush=True)
    return FoundRate(best.rate, curves)


def drawn_rates(search: Search, seed: int) -> list[float]:
    """A rate from each of `search.trials` equal parts of the log range, in the order of their trials."""
    rng = np.random.default_rng(seed)
    parts = rng.permutation(search.trials)
    shares = (parts + rng.random(search.trials)) / search.trials
    low = np.log(search.least)
    high = np.log(search.most)
    return [float(rate) for rate in np.exp(low + shares * (high - low))]


def _worth(curve: TrialCurve) -> tuple[int, float, float]:
    """How good a rate is: first who was not stopped; of equal recall the lowest rate."""
    return (len(curve.recall), curve.recall[-1], -curve.rate)


class TrialFiles:
    """A trial's files: its curve, and the state of its tuner while it may go on."""

    def __init__(self, folder: Store) -> None:
        self.folder = folder

    def read(self, number: int, rate: float) -> TrialCurve:
        """The curve so far."""
        name = self._curve(number)
        if not self.folder.exists(name):
            return TrialCurve(rate)
        return TrialCurve(**json.loads(self.folder.read(name)))

    def write(self, number: int, curve: TrialCurve) -> None:
        """The curve; once it has ended, nobody needs the state."""
        self.folder.write(self._curve(number), json.dumps(asdict(curve)).encode())
        if curve.ending:
            self.folder.delete(self._state(number))

    def load_state(self, number: int, tuner: Tuner) -> None:
        """Bring a new tuner to where the trial is."""
        name = self._state(number)
        if self.folder.exists(name):
            with local_copy(self.folder.filesystem, self.folder.path(name)) as path:
                tuner.load(path)

    def save_state(self, number: int, tuner: Tuner) -> None:
        """Keep where the trial is."""
        with self.folder.writing(self._state(number)) as path:
            tuner.save(path)

    def forget_tunes_own(self) -> None:
        """Delete what Ray Tune has left in its own folder."""
        with suppress(OSError):
            self.folder.filesystem.delete_dir(self.folder.path(TUNES_OWN))

    def _curve(self, number: int) -> str:
        return f"trial_{number:03}.json"

    def _state(self, number: int) -> str:
        return f"trial_{number:03}.pt"


class RateTrial(tune.Trainable):
    """One learning rate: a step of Ray Tune's is an epoch."""

    def setup(  # type: ignore[override]  # with_parameters gives the others
        self,
        config: dict[str, Any],
        task: Task,
        rates: Sequence[float],
        trials: TrialFiles,
    ) -> None:
        """config: `number`, that of the trial and its rate."""
        self._task = task
        self._rates = rates
        self._trials = trials
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same process, which has imported everything."""
        self._number = new_config["number"]
        self._curve = self._trials.read(self._number, self._rates[self._number])
        self._told = 0
        self._tuning: Tuning | None = None
        return True

    def step(self) -> dict[str, Any]:
        """Tell the next epoch, which is tuned if no process before has done that."""
        try:
            if self._told == len(self._curve.recall):
                self._tune_epoch()
        except HOPELESS as error:  # ends the search: but for their rates all trials are the same
            return {RECALL: 0.0, FAILURE: hopeless_reason(error), "done": True}

        recall = self._curve.recall[self._told]
        self._told += 1
        is_last = self._told == len(self._curve.recall)
        return {RECALL: recall, "done": is_last and bool(self._curve.ending)}

    def _tune_epoch(self) -> None:
        if self._tuning is None:
            self._tuning = Tuning(self._task, self._number, self._curve.rate, self._trials)
        self._curve = self._tuning.epoch_after(self._curve)
        self._trials.write(self._number, self._curve)


class Tuning:
    """The tuner of one trial and all that it needs, made where a trial is more than told again."""

    def __init__(self, task: Task, number: int, rate: float, trials: TrialFiles) -> None:
        self._number = number
        self._trials = trials
        self._epochs = task.run.train.epochs
        self._worker = _worker(task, rate)
        source = self._worker.source()
        self._tuner, self._batches = self._worker.tuner(source)
        trials.load_state(number, self._tuner)

    def epoch_after(self, curve: TrialCurve) -> TrialCurve:
        """The curve with one epoch more."""
        began = time.perf_counter()
        ending: Ending = ""
        recall = 0.0
        try:
            # A trial that was killed between its state and its curve has this epoch's steps already.
            while self._tuner.epochs_done <= len(curve.recall):
                for _ in self._tuner.epoch(self._batches):
                    pass
                self._trials.save_state(self._number, self._tuner)
            recall = self._worker.val_numbers()[names.T2V_R1]
        except DivergedError:
            ending = "diverged"

        if not ending and len(curve.recall) + 1 == self._epochs:
            ending = "finished"
        seconds = time.perf_counter() - began
        return replace(
            curve,
            recall=[*curve.recall, recall],
            seconds=[*curve.seconds, seconds],
            ending=ending,
        )


def _worker(task: Task, rate: float) -> Worker:
    """The only worker of a trial."""
    train = task.run.train.model_copy(update={"lr": rate})
    run = task.run.model_copy(update={"train": train})
    device = torch.device("cuda" if task.config.resources.gpu else "cpu")
    return Worker(replace(task, run=run), None, device)


def _compute_what_is_shared(task: Task, rate: float) -> None:
    """Fill the prefix cache and embed for the teacher once, not in each of the first trials."""
    if not task.run.train.prefix_cache and task.teacher is None:
        return

    @ray.remote
    def compute() -> None:
        worker = _worker(task, rate)
        worker.tuner(worker.source())

    resources = _resources(task.config)
    try:
        ray.get(compute.options(num_cpus=resources["CPU"], num_gpus=resources["GPU"]).remote())
    except ray.exceptions.RayError as error:
        raise RunFailedError(f"{task.run.name}: {reason_of(error)}") from error


def _resources(config: RunConfig) -> dict[str, float]:
    """What a trial holds: as much as one worker."""
    return {"CPU": config.resources.cpus_per_worker, "GPU": int(config.resources.gpu)}


def _run_trials(
    task: Task,
    rates: Sequence[float],
    trials: TrialFiles,
) -> None:
    """All trials to their ends. Raises RunFailedError."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)

    run = task.run
    trainable = tune.with_parameters(
        RateTrial,
        task=task,
        rates=rates,
        trials=trials,
    )
    asha = ASHAScheduler(
        max_t=run.train.epochs,
        grace_period=1,
        reduction_factor=KEEPS,
    )
    watch = Watch(run.name, rates, trials)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(task.config)),
        param_space={"number": tune.grid_search(list(range(len(rates))))},
        tune_config=tune.TuneConfig(
            metric=RECALL,
            mode="max",
            scheduler=asha,
            max_concurrent_trials=run.train.search.at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=TUNES_OWN,
            storage_path=trials.folder.root,
            storage_filesystem=trials.folder.filesystem,
            stop=watch,
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=task.config.resources.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=0,
        ),
    )

    # It looks for files of its own that nobody writes, and says so at length.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner.fit()
    trials.forget_tunes_own()
    if watch.failure is not None:
        raise RunFailedError(f"{run.name}: {watch.failure}")


class Watch(tune.Callback, tune.Stopper):
    """Says how each trial ends, notes which ASHA has stopped, and ends the search where one cannot go on."""

    def __init__(
        self,
        name: str,
        rates: Sequence[float],
        trials: TrialFiles,
    ) -> None:
        self.failure: str | None = None
        self._name = name
        self._rates = rates
        self._trials = trials
        self._num_ended = 0

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: object,
    ) -> None:
        """Ray Tune calls this after each epoch of a trial."""
        self.failure = self.failure or result.get(FAILURE)

    def on_trial_complete(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        **info: object,
    ) -> None:
        """Ray Tune calls this when a trial has ended, or ASHA has ended it."""
        if self.failure is not None:
            return

        number = trial.config["number"]
        curve = self._trials.read(number, self._rates[number])
        if not curve.ending:
            curve = replace(curve, ending="stopped")
            self._trials.write(number, curve)

        self._num_ended += 1
        count = f"{self._num_ended}/{len(self._rates)}"
        epochs = len(curve.recall)
        print(
            f"{self._name}: learning rate {curve.rate:.3g} {curve.ending} after {epochs} epochs:"
            f" val t2v R@1 {curve.recall[-1]:.1f} ({count})",
            flush=True,
        )

    def on_trial_error(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        **info: object,
    ) -> None:
        """Ray Tune calls this when a trial has failed more often than it may."""
        error = trial.get_error()
        reason = "failed" if error is None else reason_of(error)
        self.failure = self.failure or f"the search for a learning rate: {reason}"

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether one trial is to end here: ASHA says that."""
        return False

    def stop_all(self) -> bool:
        """Whether all are to end."""
        return self.failure is not None
