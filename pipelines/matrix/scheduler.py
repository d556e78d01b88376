"""Cells side by side, as many as the cluster has room for; each is driven by a Ray actor.

A driver holds no CPU itself: it waits until Ray Train has the placement group of its workers, which Ray
grants whole or not at all, so cells cannot block each other with halves, and nothing that holds CPUs or GPUs
waits for more. One cell more than there is room for is begun: it has the machines as soon as another has
measured, while that one's model and predictions still go to MLflow, and a cluster that can grow grows for it.
With room for several, one measures while others tune. The next group is decoded beside the cells of the one
before. All drivers live on this process's node, where `output` is, and end with it.
"""

import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.failures import reason_of
from pipelines.command.exit_codes import CommandFailedError
from pipelines.command.secrets import SafeStream
from pipelines.experiment import prepare, runs
from pipelines.experiment.results import RunResult
from pipelines.experiment.runs import Experiment
from pipelines.matrix.groups import CellGroup
from vopcore.config import Cell, MethodRun

EXPECTED = (ValueError, CommandFailedError)  # their message says all
PROGRESS_EVERY = 30.0  # seconds between lines that say how far running cells are

# cells wait for their turn, however long
PATIENCE = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1000000"}


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its result, or the reason of its failure in one line.

    shown_again: it was finished at an earlier start.
    """

    cell: Cell
    data_hash: str = ""
    result: RunResult | None = None
    shown_again: bool = False
    failure: str = ""


@dataclass(frozen=True)
class Failure:
    """What a driver returns instead of raising: Ray would add pages around the reason."""

    reason: str


@dataclass(frozen=True)
class Assignment:
    """What a driver is doing: a cell, or what must be there before the cells of a group."""

    work: Cell | CellGroup
    driver: Any
    data_hash: str = ""


@dataclass(frozen=True)
class WaitingCell:
    """A cell that may start. experiment: a Ray reference to its group's Experiment."""

    cell: Cell
    experiment: Any
    data_hash: str


def run_cells(
    groups: Sequence[CellGroup],
    logs: Path,
    at_once: int | None,
) -> Iterator[Outcome]:
    """Run every cell that is not finished; yields each as it ends. Its output goes to a file in `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    scheduler = Scheduler(groups, logs, at_once)
    try:
        yield from scheduler.outcomes()
    finally:  # also where this process is interrupted
        scheduler.dismiss()


class Scheduler:
    """What is still to do, and what is going on."""

    def __init__(
        self,
        groups: Sequence[CellGroup],
        logs: Path,
        at_once: int | None,
    ) -> None:
        self._groups = deque(groups)
        self._logs = logs
        self._at_once = at_once
        self._queue: deque[WaitingCell] = deque()
        self._running: dict[Any, Assignment] = {}
        self._idle: list[Any] = []

    def outcomes(self) -> Iterator[Outcome]:
        """Run until nothing is left to do."""
        self._start()
        while self._running:
            ready, _ = ray.wait(list(self._running), timeout=PROGRESS_EVERY)
            if not ready:
                self._print_progress()
            for task in ready:
                yield from self._end(task)
            self._start()

    def dismiss(self) -> None:
        """End all drivers, and with them the workers of their cells."""
        busy = [assignment.driver for assignment in self._running.values()]
        for driver in (*self._idle, *busy):
            ray.kill(driver)

    def _start(self) -> None:
        """Begin what there is room for: one group, and cells."""
        is_preparing = any(isinstance(running.work, CellGroup) for running in self._running.values())
        if self._groups and not is_preparing:
            group = self._groups.popleft()
            driver = self._driver()
            task = driver.prepare.remote(group, self._log(group.name))
            self._running[task] = Assignment(group, driver)

        while self._queue and self._has_room():
            waiting = self._queue.popleft()
            cell = waiting.cell
            driver = self._driver()
            print(f"started   {cell.name}", flush=True)
            task = driver.run.remote(waiting.experiment, cell, self._log(cell.name))
            self._running[task] = Assignment(cell, driver, waiting.data_hash)

    def _driver(self) -> Any:  # noqa: ANN401 - a handle of Ray's
        """One that has nothing to do, or a new one: starting one costs seconds, so they are kept."""
        if self._idle:
            return self._idle.pop()
        here = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(),
            soft=False,
        )
        kind: Any = Driver  # Ray hides an actor's class behind the type that it had
        return kind.options(scheduling_strategy=here, runtime_env={"env_vars": PATIENCE}).remote()

    def _end(self, task: ray.ObjectRef) -> Iterator[Outcome]:
        ended = self._running.pop(task)
        try:
            answer = ray.get(task)
            self._idle.append(ended.driver)
        except ray.exceptions.RayError as error:  # its process is gone
            answer = Failure(reason_of(error))

        if isinstance(ended.work, CellGroup):
            yield from self._enqueue(ended.work, task, answer)
        else:
            yield _outcome(ended.work, ended.data_hash, answer)

    def _enqueue(
        self,
        group: CellGroup,
        task: ray.ObjectRef,
        answer: Experiment | Failure,
    ) -> Iterator[Outcome]:
        """A group is decoded: its cells may run, but for those that are finished."""
        for cell in group.cells:
            if isinstance(answer, Failure):
                yield _outcome(cell, "", answer)
                continue

            data_hash = answer.data.data_hash
            result = runs.finished(*_of_cell(answer, cell))
            if result is not None:
                yield Outcome(cell, data_hash, result, shown_again=True)
            else:
                self._queue.append(WaitingCell(cell, task, data_hash))

    def _has_room(self) -> bool:
        """Whether another cell may begin: also the first that there is no room for yet."""
        running = [assignment.work for assignment in self._running.values()]
        cells = [work for work in running if isinstance(work, Cell)]
        if self._at_once is not None:
            return len(cells) < self._at_once

        available = ray.cluster_resources()
        for kind in ("CPU", "GPU"):
            held = sum(needs(cell)[kind] for cell in cells)
            if held > available.get(kind, 0):
                return False
        return True

    def _log(self, name: str) -> Path:
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
        return self._logs / f"{safe}.log"

    def _print_progress(self) -> None:
        """The last line that each driver has printed."""
        for assignment in self._running.values():
            name = assignment.work.name
            log = self._log(name)
            lines = log.read_text().strip().splitlines() if log.is_file() else []
            print(f"  ...     {name}: {lines[-1] if lines else 'starting'}", flush=True)


def needs(cell: Cell) -> dict[str, int]:
    """What a cell's workers hold together."""
    resources = cell.config.resources
    return {"CPU": resources.workers * resources.cpus_per_worker, "GPU": resources.workers * resources.gpu}


@ray.remote(num_cpus=0)
class Driver:
    """Prepares groups and runs cells, one after the other."""

    def prepare(self, group: CellGroup, log: Path) -> Experiment | Failure:
        """What all cells of a group share: its videos, its small CLIP, its shards."""
        with _output_to(log) as failures:
            data = prepare.decoded(prepare.prepared(group.config))
            return runs.open_experiment(data, Path(group.file))
        return failures[0]

    def run(
        self,
        experiment: Experiment,
        cell: Cell,
        log: Path,
    ) -> RunResult | Failure:
        """Tune and measure one cell."""
        with _output_to(log) as failures:
            return runs.run_method(*_of_cell(experiment, cell))
        return failures[0]


def _of_cell(experiment: Experiment, cell: Cell) -> tuple[Experiment, MethodRun]:
    """The experiment of the group with a cell's own seed and method, on the same frozen weights."""
    config = cell.config.model_copy(update={"clip": experiment.config.clip})
    others = [other for other in experiment.data.others if other.entry in config.evaluate.also]
    data = replace(experiment.data, config=config, others=others)
    return replace(experiment, data=data), config.methods[0]


@contextmanager
def _output_to(log: Path) -> Iterator[list[Failure]]:
    """All that is printed goes to a file; what goes wrong is caught, and is in the list it yields."""
    failures: list[Failure] = []
    with log.open("a", buffering=1) as file:
        # a command takes the secrets out of what it prints; in an actor nobody else does
        safe_file = SafeStream(file)
        with redirect_stdout(safe_file), redirect_stderr(safe_file):
            try:
                yield failures
            except EXPECTED as error:
                print(f"error: {error}")
                first_lines = str(error).split("\n")[:2]
                failures.append(Failure(" ".join(first_lines)))
            except Exception as error:
                # one cell's, whatever it is, must not end the others
                traceback.print_exc()
                failures.append(Failure(f"{reason_of(error)} ({log} says more)"))


def _outcome(
    cell: Cell,
    data_hash: str,
    answer: RunResult | Failure,
) -> Outcome:
    if isinstance(answer, Failure):
        return Outcome(cell, data_hash, failure=answer.reason)
    return Outcome(cell, data_hash, answer)
