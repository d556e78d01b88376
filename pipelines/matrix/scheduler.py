"""Cells side by side, as many as the cluster has room for; each is driven by a Ray actor.

A driver holds no CPU itself: it waits until Ray Train has the placement group of its workers, which Ray
grants whole or not at all, so cells cannot block each other with halves, and nothing that holds CPUs or GPUs
waits for more. One cell more than there is room for is begun: it has the machines as soon as another has
measured, while that one's model and predictions still go to MLflow, and a cluster that can grow grows for it.
With room for several, one measures while others tune. The next world is decoded beside the cells of the one
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
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.experiment import prepare, runs
from pipelines.ingest.driver import TooManyFailedError
from pipelines.matrix.groups import World
from pipelines.run import decode
from pipelines.tune.driver import RunFailedError
from vopcore.config import Cell, MethodRun
from vopcore.shards import Shards

EXPECTED = (ValueError, RunFailedError, TooManyFailedError)  # their message says all
TELL_EVERY = 30.0  # seconds between lines that say how far running cells are
PATIENCE = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1000000"}  # cells wait for their turn, however long


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `result` as compare.py leaves it, or the reason of its failure in one line."""

    cell: Cell
    data_hash: str = ""
    result: dict[str, Any] | None = None
    before: bool = False  # finished at an earlier start
    failure: str = ""


@dataclass(frozen=True)
class Failed:
    """What a driver returns instead of raising: Ray would add pages around the reason."""

    reason: str


def run_cells(worlds: Sequence[World], logs: Path, at_once: int | None) -> Iterator[Outcome]:
    """Run every cell that is not finished; yields each as it ends. Its words go to a file in `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    board = Board(logs, at_once, deque(worlds))
    try:
        yield from board.play()
    finally:  # also where this process is interrupted
        board.dismiss()


@dataclass(frozen=True)
class Job:
    """What a driver is doing: a cell, or what must be there before the cells of a world."""

    what: Cell | World
    driver: ray.actor.ActorHandle
    data_hash: str = ""


@dataclass
class Board:
    """What is still to do, and what is going on."""

    logs: Path
    at_once: int | None
    worlds: deque[World]

    def __post_init__(self) -> None:
        self.queue: deque[tuple[ray.ObjectRef, str, Cell]] = deque()
        self.running: dict[ray.ObjectRef, Job] = {}
        self.idle: list[ray.actor.ActorHandle] = []

    def play(self) -> Iterator[Outcome]:
        """Until nothing is left to do."""
        self._start()
        while self.running:
            done, _ = ray.wait(list(self.running), timeout=TELL_EVERY)
            if not done:
                self._tell()
            for task in done:
                yield from self._end(task)
            self._start()

    def dismiss(self) -> None:
        """End all drivers, and with them the workers of their cells."""
        for driver in (*self.idle, *(job.driver for job in self.running.values())):
            ray.kill(driver)

    def _start(self) -> None:
        """Begin what there is room for: one world, and cells."""
        if self.worlds and not any(isinstance(job.what, World) for job in self.running.values()):
            world, driver = self.worlds.popleft(), self._driver()
            task = driver.prepare.remote(world, self._log(world.name), torch.get_num_threads())
            self.running[task] = Job(world, driver)
        while self.queue and self._room():
            shared, data_hash, cell = self.queue.popleft()
            driver = self._driver()
            print(f"started   {cell.name}", flush=True)
            self.running[driver.run.remote(shared, cell, self._log(cell.name))] = Job(cell, driver, data_hash)

    def _driver(self) -> ray.actor.ActorHandle:
        """One that has nothing to do, or a new one: starting one costs seconds, so they are kept."""
        if self.idle:
            return self.idle.pop()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return Driver.options(scheduling_strategy=here, runtime_env={"env_vars": PATIENCE}).remote()

    def _end(self, task: ray.ObjectRef) -> Iterator[Outcome]:
        job = self.running.pop(task)
        try:
            got = ray.get(task)
            self.idle.append(job.driver)
        except ray.exceptions.RayError as error:  # its process is gone
            got = Failed(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        if isinstance(job.what, World):
            yield from self._ready(job.what, task, got)
        else:
            yield _ended(job.what, job.data_hash, got)

    def _ready(
        self, world: World, task: ray.ObjectRef, shared: runs.Comparison | Failed
    ) -> Iterator[Outcome]:
        """A world is decoded: its cells may run, but for those that are finished."""
        for cell in world.cells:
            if isinstance(shared, Failed):
                yield _ended(cell, "", shared)
            elif found := runs.finished(*_own(shared, cell)):
                yield Outcome(cell, shared.data_hash, found, before=True)
            else:
                self.queue.append((task, shared.data_hash, cell))

    def _room(self) -> bool:
        """Whether another cell may begin: also the first that there is no room for yet."""
        busy = [job.what for job in self.running.values() if isinstance(job.what, Cell)]
        if self.at_once is not None:
            return len(busy) < self.at_once
        there = ray.cluster_resources()
        held = [needs(one) for one in busy]
        return all(sum(n[kind] for n in held) <= there.get(kind, 0) for kind in ("CPU", "GPU"))

    def _log(self, name: str) -> Path:
        return self.logs / ("".join(c if c.isalnum() or c in "-_." else "_" for c in name) + ".log")

    def _tell(self) -> None:
        for job in self.running.values():
            log = self._log(job.what.name)
            said = log.read_text().strip().splitlines() if log.is_file() else []
            print(f"  ...     {job.what.name}: {said[-1] if said else 'starting'}", flush=True)


def needs(cell: Cell) -> dict[str, int]:
    """What a cell's workers hold together."""
    resources = cell.config.resources
    return {"CPU": resources.workers * resources.cpus_per_worker, "GPU": resources.workers * resources.gpu}


@ray.remote(num_cpus=0)
class Driver:
    """Prepares worlds and runs cells, one after the other."""

    def prepare(self, world: World, log: Path, threads: int) -> runs.Comparison | Failed:
        """What all cells of a world share: its clips, its small CLIP, its shards."""
        torch.set_num_threads(threads)  # Ray allows an actor one
        with _words_to(log) as failure:
            prepare.quickstart_world(world.config)
            annotations = prepare.annotations(world.config)
            prepare.claim_output(world.config, annotations)
            config = prepare.with_upstream(world.config)
            shards = decode(config, annotations)
            prepare.check_decoded(config, annotations, Shards(shards))
            return runs.comparison(config, annotations, shards, Path(world.file))
        return Failed(failure[0])

    def run(self, shared: runs.Comparison, cell: Cell, log: Path) -> dict[str, Any] | Failed:
        """Tune and measure one cell."""
        with _words_to(log) as failure:
            return runs.best(*_own(shared, cell))
        return Failed(failure[0])


def _own(shared: runs.Comparison, cell: Cell) -> tuple[runs.Comparison, MethodRun]:
    """A cell's part of its world: its own seed and method, on the same frozen weights."""
    config = cell.config.model_copy(update={"clip": shared.config.clip})
    return replace(shared, config=config), config.methods[0]


@contextmanager
def _words_to(log: Path) -> Iterator[list[str]]:
    """All that is printed goes to a file; what goes wrong is caught, and said in the list it yields."""
    failure: list[str] = []
    with log.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        try:
            yield failure
        except EXPECTED as error:
            print(f"error: {error}")
            failure.append(" ".join(str(error).split("\n")[:2]))
        except Exception as error:  # one cell's, whatever it is, must not end the others
            traceback.print_exc()
            failure.append(f"{type(error).__name__}: {error}".splitlines()[0] + f" ({log} says more)")


def _ended(cell: Cell, data_hash: str, got: dict[str, Any] | Failed) -> Outcome:
    if isinstance(got, Failed):
        return Outcome(cell, data_hash, failure=got.reason)
    return Outcome(cell, data_hash, got)
