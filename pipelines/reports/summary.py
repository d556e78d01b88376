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
from vopcore.metrics import names

DECIDES = (  # settings that make another row of the same method
    "method.",
    "train.",
    "video.frames",
    "video.sampler",
    "video.size",
    "clip.",
)

Settings = tuple[tuple[str, str], ...]  # (name, value), by name


@dataclass(frozen=True)
class SeedMean:
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
    # the method, and what was set differently where one method stands there several times
    label: str
    runs: Sequence[TrackedRun]

    @property
    def seeds(self) -> list[int]:
        return [_seed(run) for run in self.runs]

    def number(self, metric: str) -> SeedMean | None:
        """The mean over seeds and its 95% interval.

        What seeds and test queries leave open, both at 95%, adds in quadrature: Student's t interval of the
        mean over seeds, and the runs' own bootstrap over queries.
        """
        values = []
        for run in self.runs:
            if metric in run.metrics:
                values.append(run.metrics[metric])
        if not values:
            return None

        mean = statistics.mean(values)
        below = self._reach(metric, names.low(metric))
        above = self._reach(metric, names.high(metric))

        # One seed says nothing about the others: what is left is what its own queries leave open.
        if len(values) == 1:
            low = None if below is None else mean - below
            high = None if above is None else mean + above
            return SeedMean(mean, None, low, high)

        num_seeds = len(values)
        quantile = float(student.ppf(0.975, num_seeds - 1))
        std = statistics.stdev(values)
        half = quantile * std / math.sqrt(num_seeds)

        # Two causes that know nothing of each other.
        low = mean - math.hypot(half, below or 0)
        high = mean + math.hypot(half, above or 0)
        return SeedMean(mean, std, low, high)

    def _reach(self, metric: str, end: str) -> float | None:
        """How far the runs' bootstrap intervals reach from their numbers, on average.

        end: the name of the interval's end. None where no run has an interval.
        """
        distances = []
        for run in self.runs:
            if end in run.metrics:
                value = run.metrics[metric]
                limit = run.metrics[end]
                distances.append(abs(limit - value))

        if not distances:
            return None
        return statistics.mean(distances)

    def published(self, direction: str) -> list[PublishedRow]:
        """What papers print of the same experiment; the runs of a row differ in nothing but the seed."""
        return beside(self.runs[0], direction)

    def value(self, metric: str) -> float | None:
        """The mean over seeds; None where nothing was measured."""
        number = self.number(metric)
        if number is None:
            return None
        return number.mean


@dataclass(frozen=True)
class LeftOut:
    """A run that is not in the tables, and why."""

    run: TrackedRun
    why: str


def summarize(
    runs: Sequence[TrackedRun],
) -> tuple[list[MethodResult], list[LeftOut]]:
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
    usable.sort(key=_identity)  # groupby wants its groups side by side
    for (dataset, method), group in groupby(usable, key=_experiment):
        variants = [list(variant) for _, variant in groupby(group, key=_identity)]
        for number, variant in enumerate(variants):
            newest, replaced = _newest_of_each_seed(variant)
            left_out += replaced

            # Settings are in the label only where they tell rows of one method apart.
            label = method
            if len(variants) > 1:
                label = f"{method} ({_difference(variants, number)})"
            results.append(MethodResult(dataset, method, label, newest))

    # Not sorted so before: neighbours had to have the same settings.
    results.sort(key=_table_order)
    return results, left_out


def _table_order(result: MethodResult) -> tuple[str, tuple[int, str]]:
    return result.dataset, _place(result.method)


def _newest_of_each_seed(
    variant: Sequence[TrackedRun],
) -> tuple[list[TrackedRun], list[LeftOut]]:
    """The runs that count, by seed; and those whose seed was run again."""
    # From old to new, so that the newest is what stays.
    newest: dict[int, TrackedRun] = {}
    for run in sorted(variant, key=lambda run: run.started):
        newest[_seed(run)] = run

    replaced = []
    for run in variant:
        seed = _seed(run)
        successor = newest[seed]
        if successor is not run:
            reason = f"seed {seed} was run again: {successor.name}"
            replaced.append(LeftOut(run, reason))

    by_seed = [newest[seed] for seed in sorted(newest)]
    return by_seed, replaced


def labels(results: Sequence[MethodResult]) -> list[str]:
    """The rows of all datasets, once each, in the order of METHODS."""
    in_order = sorted(results, key=lambda result: _place(result.method))

    # A dict keeps the order, a set would not.
    unique: dict[str, None] = {}
    for result in in_order:
        unique[result.label] = None
    return list(unique)


def unusable(run: TrackedRun) -> str | None:
    """Why a run has no place in a table; None if it has."""
    # MLflow hears nothing of a process that was killed: its run is RUNNING for ever.
    if run.status == "RUNNING":
        return "not finished: running, or ended without a word; the same command goes on with it"
    if run.status != "FINISHED":
        error = run.tags.get("error", "no reason was recorded")
        return f"{run.status.lower()}: {error}"

    # Rows are ordered and compared by this number.
    recall = run.metrics.get(names.T2V_R1)
    if recall is None:
        return f"no {names.T2V_R1} was measured"
    if not math.isfinite(recall):
        return f"{names.T2V_R1} is {recall}"
    return None


def dataset_of(run: TrackedRun) -> str:
    """The benchmark's name; a folder of one's own goes by the name of its config."""
    dataset = run.tags.get("dataset", "?")
    if dataset == "folder":
        return run.params.get("name", dataset)
    return dataset


def _experiment(run: TrackedRun) -> tuple[str, str]:
    """Data set and method."""
    method = run.tags.get("method", run.name)
    return dataset_of(run), method


def _settings(run: TrackedRun) -> Settings:
    """What makes a run another row than a run of the same method, by name."""
    settings = []
    for name, value in sorted(run.params.items()):
        if name.startswith(DECIDES):
            settings.append((name, value))

    # The same benchmark with other captions is another experiment.
    data_hash = run.tags.get("data_hash", "")
    settings.append(("data", data_hash))
    return tuple(settings)


def _identity(run: TrackedRun) -> tuple[str, str, Settings]:
    """Runs with the same identity differ in nothing but the seed."""
    dataset, method = _experiment(run)
    return dataset, method, _settings(run)


def _difference(variants: Sequence[Sequence[TrackedRun]], number: int) -> str:
    """`train.lr 0.001`: the settings in which a variant differs from the others of its method."""
    # Runs of one variant agree: the first speaks for all.
    settings_of = []
    for variant in variants:
        first = variant[0]
        settings_of.append(dict(_settings(first)))
    setting_names = sorted(set().union(*settings_of))

    words = []
    for name in setting_names:
        values = {settings.get(name) for settings in settings_of}
        if len(values) > 1:
            value = settings_of[number].get(name, "not set")
            words.append(f"{name} {value}")
    return ", ".join(words)


def _place(method: str) -> tuple[int, str]:
    """Sorts methods as METHODS has them; one that is gone from there comes last."""
    order = list(METHODS)
    if method in order:
        return order.index(method), method
    return len(order), method


def _seed(run: TrackedRun) -> int:
    return int(run.tags.get("seed", 0))
