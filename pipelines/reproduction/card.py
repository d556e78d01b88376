"""A reference card: a config, the data it was run on, every setting, and numbers with their intervals."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.track import TrackedRun
from vopcore.metrics import names

DIRECTIONS = (names.T2V, names.V2T)
Z = 1.96  # of a 95% interval
NOT_COMPARED = (  # where things are kept, which changes no number
    "data.root",
    "data.videos",
    "output",
    "storage",
    "run",
    "mlflow.",
    "resources.cache.",
)
FILES = ("clip.model", "clip.pretrained")  # settings that may be a file, here or there


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
        values = yaml.safe_load(path.read_text())
        return Reference(**values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        # YAML says over several lines where it stopped.
        one_line = " ".join(str(error).split())
        raise CardError(f"{path}: {one_line}") from None
    except TypeError:
        # An empty file is None in YAML, a list a list: neither has keys.
        raise CardError(f"{path}: holds no card (key: value)") from None
    except ValidationError as error:
        # One line for the first mistake; the next run tells the next.
        first = error.errors()[0]
        steps = [str(step) for step in first["loc"]]
        key = ".".join(steps)
        reason = first["msg"].lower()
        raise CardError(f"{path}: {key}: {reason}") from None


def make_card(
    run: TrackedRun,
    splits: Mapping[str, Mapping[str, int]],
    config: str,
    overrides: tuple[str, ...],
) -> Reference:
    """The card of a finished run; its numbers are those of the run, with all their digits."""
    numbers = {}
    for direction in DIRECTIONS:
        for short_name in names.LARGER_IS_BETTER:
            name = names.of(direction, short_name)
            interval = _interval(run.metrics, direction, name)
            if interval is not None:
                numbers[name] = interval
    if not numbers:
        raise CardError(f"{run.name}: has no recall to make a card of")

    settings = {}
    for name, value in sorted(run.params.items()):
        if _is_compared(name):
            settings[name] = _without_folder(name, value)

    # A run's name ends with its day: `vop_p seed 0 2026-11-27`.
    _, _, day = run.name.rpartition(" ")
    gpu = run.tags.get("gpu", "no GPU")
    code_version = run.tags.get("code_version", "unknown")

    data_hash = run.tags.get("data_hash", "")
    split_counts = {split: SplitCounts(**counts) for split, counts in splits.items()}
    data = ReferenceData(annotations=data_hash, splits=split_counts)

    return Reference(
        method=run.tags["method"],
        config=config,
        overrides=overrides,
        measured=f"{day}, GPU {gpu}, code {code_version}",
        data=data,
        numbers=numbers,
        settings=settings,
    )


def _interval(
    metrics: Mapping[str, float],
    direction: str,
    name: str,
) -> Interval | None:
    """The run's own bootstrap where it made one, else Wilson's interval over the test queries."""
    value = metrics.get(name)
    if value is None:
        return None

    low_name = names.low(name)
    if low_name in metrics:
        return Interval(
            value=value,
            low=metrics[low_name],
            high=metrics[names.high(name)],
        )

    # The queries of v2t are the videos.
    queries_name = names.QUERIES_EXPECTED
    if direction == names.V2T:
        queries_name = names.GALLERY_EXPECTED
    num_queries = metrics.get(queries_name)
    if not num_queries:
        return None

    low, high = wilson(value / 100, num_queries)
    return Interval(
        value=value,
        low=100 * low,
        high=100 * high,
    )


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` (1927)."""
    shrinkage = 1 + Z**2 / count
    offset = Z**2 / (2 * count)
    centre = (share + offset) / shrinkage

    variance = share * (1 - share) / count
    correction = Z**2 / (4 * count**2)
    half = Z / shrinkage * math.sqrt(variance + correction)

    # Rounding may lead a little beyond a share of 0 or 1.
    low = max(0.0, centre - half)
    high = min(1.0, centre + half)
    return low, high


def write_card(card: Reference, path: Path) -> None:
    """As YAML, in the order of `Reference`."""
    values: dict[str, Any] = card.model_dump(mode="json")
    text = yaml.safe_dump(
        values,
        sort_keys=False,
        allow_unicode=True,
        width=110,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def first_difference(
    reference: Mapping[str, str],
    settings: Mapping[str, str],
) -> str | None:
    """The first setting, by name, that is another here: `train.epochs: 1 here, 6 in the reference`.

    What a number is made with comes before the machine it was made on, and both before a setting that only
    one of the two knows: it came with another version of the code, which began with what was done before.
    """
    all_names = reference.keys() | settings.keys()
    compared = [name for name in all_names if _is_compared(name)]

    def rank(name: str) -> tuple[bool, bool, str]:
        is_known_to_both = name in reference and name in settings
        return not is_known_to_both, name.startswith("resources."), name

    compared.sort(key=rank)

    for name in compared:
        here = _without_folder(name, settings.get(name, "not set"))
        in_reference = _without_folder(name, reference.get(name, "not set"))
        if here != in_reference:
            return f"{name}: {here} here, {in_reference} in the reference"
    return None


def _without_folder(name: str, value: str) -> str:
    """A setting that may be a file, by the file's name alone: it lies elsewhere on every machine."""
    if name not in FILES:
        return value
    return value.rpartition("/")[2]


def _is_compared(name: str) -> bool:
    return not name.startswith(NOT_COMPARED) and name != "name"
