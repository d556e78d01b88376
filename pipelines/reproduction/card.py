"""A reference card: a config, the data it was run on, every setting, and numbers with their intervals."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.track import TrackedRun

RECALL = ("R1", "R5", "R10")
DIRECTIONS = ("t2v", "v2t")
Z = 1.96  # of a 95% interval
NOT_COMPARED = ("data.root", "data.videos", "output", "storage", "run", "mlflow.", "resources.cache.")


class CardError(ValueError):
    """A card that cannot be read, or a run no card can be made of; one line."""


class CardPart(BaseModel):
    """A part of a card: nothing unknown in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(CardPart):
    """A number and what its test queries leave open, at 95%; recall in percent."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether another run's number agrees."""
        return self.low <= value <= self.high


class SplitCounts(CardPart):
    """How much data a split holds."""

    videos: int
    captions: int


class ReferenceData(CardPart):
    """The annotations by their hash, which paths and frames do not change, and what is in each split."""

    annotations: str
    splits: dict[str, SplitCounts]


class Reference(CardPart):
    """What was measured. `settings`: all of the run, flat, as MLflow shows them."""

    method: str
    config: str  # a file of this project
    overrides: tuple[str, ...] = ()
    measured: str  # when, on what, by which code
    data: ReferenceData
    numbers: dict[str, Interval] = Field(min_length=1)
    settings: dict[str, str]


def read_card(path: Path) -> Reference:
    """Read a card. Raises CardError naming the file and the key."""
    try:
        return Reference(**yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CardError(f"{path}: {' '.join(str(error).split())}") from None
    except TypeError:
        raise CardError(f"{path}: holds no card (key: value)") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        raise CardError(f"{path}: {key}: {first['msg'].lower()}") from None


def make_card(
    run: TrackedRun, splits: Mapping[str, Mapping[str, int]], config: str, overrides: tuple[str, ...]
) -> Reference:
    """The card of a finished run; its numbers are those of the run, with all their digits."""
    numbers = {}
    for direction in DIRECTIONS:
        for name in RECALL:
            interval = _interval(run.metrics, f"{direction}/{name}")
            if interval is not None:
                numbers[f"{direction}/{name}"] = interval
    if not numbers:
        raise CardError(f"{run.name}: has no recall to make a card of")

    where = f"{run.tags.get('gpu', 'no GPU')}, code {run.tags.get('code_version', 'unknown')}"
    return Reference(
        method=run.tags["method"],
        config=config,
        overrides=overrides,
        measured=f"{run.name.rpartition(' ')[2]}, GPU {where}",
        data=ReferenceData(annotations=run.tags.get("data_hash", ""), splits=splits),
        numbers=numbers,
        settings={name: value for name, value in sorted(run.params.items()) if _is_compared(name)},
    )


def _interval(metrics: Mapping[str, float], name: str) -> Interval | None:
    """The run's own bootstrap where it made one, else Wilson's interval over the test queries."""
    value = metrics.get(name)
    queries = metrics.get("queries/expected" if name.startswith("t2v") else "gallery/expected")
    if value is None:
        return None
    if f"{name}_low" in metrics:
        return Interval(value=value, low=metrics[f"{name}_low"], high=metrics[f"{name}_high"])
    if not queries:
        return None
    low, high = wilson(value / 100, queries)
    return Interval(value=value, low=100 * low, high=100 * high)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` (1927)."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def write_card(card: Reference, path: Path) -> None:
    """As YAML, in the order of `Reference`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = card.model_dump(mode="json")
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110))


def first_difference(reference: Mapping[str, str], settings: Mapping[str, str]) -> str | None:
    """The first setting, by name, that is another here: `train.epochs: 1 here, 6 in the reference`.

    What a number is made with comes before the machine it was made on.
    """
    names = sorted(
        (name for name in reference.keys() | settings.keys() if _is_compared(name)),
        key=lambda name: (name.startswith("resources."), name),
    )
    for name in names:
        in_run = settings.get(name, "not set")
        in_reference = reference.get(name, "not set")
        if in_run != in_reference:
            return f"{name}: {in_run} here, {in_reference} in the reference"
    return None


def _is_compared(name: str) -> bool:
    return not name.startswith(NOT_COMPARED) and name != "name"
