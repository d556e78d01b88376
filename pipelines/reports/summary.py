"""From runs to cells: one method on one dataset, its seeds taken together."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from scipy.stats import t as student

from pipelines.reports.published import PublishedRow, beside
from pipelines.track import TrackedRun
from vopcore.methods import METHODS

NEEDED = "t2v/R1"
DECIDES = (  # settings that make another row of the same method
    "method.",
    "train.",
    "video.frames",
    "video.sampler",
    "video.size",
    "clip.",
)


@dataclass(frozen=True)
class Estimate:
    """A number over seeds. `low`, `high`: 95%; None where nothing says how far it may be off."""

    mean: float
    std: float | None = None  # over seeds; None: one seed
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class MethodResult:
    """One method with one set of settings on one dataset: for each seed the newest run."""

    dataset: str
    method: str
    label: str  # the method, and what was set differently where one method stands there several times
    runs: Sequence[TrackedRun]

    @property
    def seeds(self) -> list[int]:
        return [_seed(run) for run in self.runs]

    def number(self, metric: str) -> Estimate | None:
        """Mean over seeds. What seeds and test queries leave open, both at 95%, adds in quadrature: Student's
        t interval of the mean over seeds, and the runs' own bootstrap over queries.
        """
        values = [run.metrics[metric] for run in self.runs if metric in run.metrics]
        if not values:
            return None
        mean = statistics.mean(values)
        below, above = self._reach(metric, "low"), self._reach(metric, "high")
        if len(values) == 1:
            low = None if below is None else mean - below
            high = None if above is None else mean + above
            return Estimate(mean, None, low, high)
        std = statistics.stdev(values)
        half = float(student.ppf(0.975, len(values) - 1)) * std / math.sqrt(len(values))
        return Estimate(mean, std, mean - math.hypot(half, below or 0), mean + math.hypot(half, above or 0))

    def _reach(self, metric: str, end: str) -> float | None:
        """How far the runs' bootstrap intervals reach from their numbers, on average; None: no such."""
        reach = [
            abs(run.metrics[f"{metric}_{end}"] - run.metrics[metric])
            for run in self.runs
            if f"{metric}_{end}" in run.metrics
        ]
        return statistics.mean(reach) if reach else None

    def published(self, direction: str) -> list[PublishedRow]:
        """What papers print of the same experiment; the runs of a row differ in nothing but the seed."""
        return beside(self.runs[0], direction)

    def value(self, metric: str) -> float | None:
        found = self.number(metric)
        return found.mean if found else None


@dataclass(frozen=True)
class LeftOut:
    """A run that is not in the tables, and why."""

    run: TrackedRun
    why: str


def summarize(runs: Sequence[TrackedRun]) -> tuple[list[MethodResult], list[LeftOut]]:
    """Cells by dataset, then in the order of METHODS; and what could not be used."""
    left_out = [LeftOut(run, why) for run in runs if (why := unusable(run))]
    usable = sorted((run for run in runs if not unusable(run)), key=_identity)
    cells = []
    for (dataset, method), several in groupby(usable, key=lambda run: _identity(run)[:2]):
        variants = [list(group) for _, group in groupby(several, key=_identity)]
        for number, variant in enumerate(variants):
            newest = {_seed(run): run for run in sorted(variant, key=lambda run: run.started)}
            left_out += [
                LeftOut(run, f"seed {_seed(run)} was run again: {newest[_seed(run)].name}")
                for run in variant
                if newest[_seed(run)] is not run
            ]
            label = method if len(variants) == 1 else f"{method} ({_difference(variants, number)})"
            cells.append(MethodResult(dataset, method, label, sorted(newest.values(), key=_seed)))
    return sorted(cells, key=lambda cell: (cell.dataset, _place(cell.method))), left_out


def labels(cells: Sequence[MethodResult]) -> list[str]:
    """The rows of all datasets, once each, in the order of METHODS."""
    return list(dict.fromkeys(cell.label for cell in sorted(cells, key=lambda cell: _place(cell.method))))


def unusable(run: TrackedRun) -> str | None:
    """Why a run has no place in a table; None if it has."""
    if run.status == "RUNNING":
        return "not finished: running, or ended without a word; the same command goes on with it"
    if run.status != "FINISHED":
        return f"{run.status.lower()}: {run.tags.get('error', 'no reason was recorded')}"
    if NEEDED not in run.metrics:
        return f"no {NEEDED} was measured"
    if not math.isfinite(run.metrics[NEEDED]):
        return f"{NEEDED} is {run.metrics[NEEDED]}"
    return None


def dataset_of(run: TrackedRun) -> str:
    """The benchmark's name; a folder of one's own goes by the name of its config."""
    dataset = run.tags.get("dataset", "?")
    return run.params.get("name", dataset) if dataset == "folder" else dataset


def _identity(run: TrackedRun) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    settings = sorted((name, value) for name, value in run.params.items() if name.startswith(DECIDES))
    settings.append(("data", run.tags.get("data_hash", "")))
    return dataset_of(run), run.tags.get("method", run.name), tuple(settings)


def _difference(variants: Sequence[Sequence[TrackedRun]], number: int) -> str:
    """`train.lr 0.001`: the settings in which a variant differs from the others of its method."""
    settings = [dict(_identity(variant[0])[2]) for variant in variants]
    return ", ".join(
        f"{name} {settings[number].get(name, 'not set')}"
        for name in sorted(set().union(*settings))
        if len({other.get(name) for other in settings}) > 1
    )


def _place(method: str) -> tuple[int, str]:
    order = list(METHODS)
    return (order.index(method) if method in order else len(order)), method


def _seed(run: TrackedRun) -> int:
    return int(run.tags.get("seed", 0))
