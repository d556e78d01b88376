"""From runs to rows: one method on one data set, its seeds taken together."""

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
        below = self._reach(metric, "low")
        above = self._reach(metric, "high")
        if len(values) == 1:
            low = None if below is None else mean - below
            high = None if above is None else mean + above
            return Estimate(mean, None, low, high)

        std = statistics.stdev(values)
        quantile = float(student.ppf(0.975, len(values) - 1))
        half = quantile * std / math.sqrt(len(values))
        low = mean - math.hypot(half, below or 0)
        high = mean + math.hypot(half, above or 0)
        return Estimate(mean, std, low, high)

    def _reach(self, metric: str, end: str) -> float | None:
        """How far the runs' bootstrap intervals reach from their numbers, on average; None: no such."""
        end_name = f"{metric}_{end}"
        measured = [run.metrics for run in self.runs if end_name in run.metrics]
        if not measured:
            return None
        return statistics.mean(abs(metrics[end_name] - metrics[metric]) for metrics in measured)

    def published(self, direction: str) -> list[PublishedRow]:
        """What papers print of the same experiment; the runs of a row differ in nothing but the seed."""
        return beside(self.runs[0], direction)

    def value(self, metric: str) -> float | None:
        """The mean over seeds; None where nothing was measured."""
        number = self.number(metric)
        return number.mean if number else None


@dataclass(frozen=True)
class LeftOut:
    """A run that is not in the tables, and why."""

    run: TrackedRun
    why: str


def summarize(runs: Sequence[TrackedRun]) -> tuple[list[MethodResult], list[LeftOut]]:
    """Results by data set, then in the order of METHODS; and the runs that could not be used."""
    left_out = []
    usable = []
    for run in runs:
        reason = unusable(run)
        if reason:
            left_out.append(LeftOut(run, reason))
        else:
            usable.append(run)

    results = []
    usable.sort(key=_identity)
    for (dataset, method), group in groupby(usable, key=lambda run: _identity(run)[:2]):
        variants = [list(variant) for _, variant in groupby(group, key=_identity)]
        for number, variant in enumerate(variants):
            newest, replaced = _newest_of_each_seed(variant)
            left_out += replaced
            label = method if len(variants) == 1 else f"{method} ({_difference(variants, number)})"
            results.append(MethodResult(dataset, method, label, newest))

    results.sort(key=lambda result: (result.dataset, _place(result.method)))
    return results, left_out


def _newest_of_each_seed(variant: Sequence[TrackedRun]) -> tuple[list[TrackedRun], list[LeftOut]]:
    """The runs that count, by seed; and those whose seed was run again."""
    newest: dict[int, TrackedRun] = {}
    for run in sorted(variant, key=lambda run: run.started):
        newest[_seed(run)] = run

    replaced = []
    for run in variant:
        successor = newest[_seed(run)]
        if successor is not run:
            replaced.append(LeftOut(run, f"seed {_seed(run)} was run again: {successor.name}"))
    return [newest[seed] for seed in sorted(newest)], replaced


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
    names = sorted(set().union(*settings))

    words = []
    for name in names:
        values = {other.get(name) for other in settings}
        if len(values) > 1:
            words.append(f"{name} {settings[number].get(name, 'not set')}")
    return ", ".join(words)


def _place(method: str) -> tuple[int, str]:
    order = list(METHODS)
    place = order.index(method) if method in order else len(order)
    return place, method


def _seed(run: TrackedRun) -> int:
    return int(run.tags.get("seed", 0))
