"""Whether the numbers of a run agree with those of a reference card, and where to look if they do not."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.reproduction.card import Interval, Reference, first_difference


@dataclass(frozen=True)
class NumberVerdict:
    """One number of a card beside this run's; None: this run has none of that name."""

    name: str
    reference: Interval
    value: float | None

    @property
    def is_inside(self) -> bool:
        return self.value is not None and self.reference.holds(self.value)


def verdicts(card: Reference, metrics: Mapping[str, float]) -> list[NumberVerdict]:
    """One for every number of the card, in its order."""
    return [NumberVerdict(name, interval, metrics.get(name)) for name, interval in card.numbers.items()]


def verdict_lines(
    card: Reference, numbers: list[NumberVerdict], settings: Mapping[str, str], code_version: str
) -> list[str]:
    """What to print: a line for each number, and where to look if one is outside."""
    lines = []
    for number in numbers:
        word = "inside " if number.is_inside else "OUTSIDE"
        value = "none" if number.value is None else f"{number.value:.2f}"
        interval = f"{number.reference.low:.2f} to {number.reference.high:.2f}"
        lines.append(
            f"{word} {number.name}: {value}; the reference has {number.reference.value:.2f} ({interval})"
        )

    if all(number.is_inside for number in numbers):
        return [*lines, f"all {len(numbers)} numbers are inside the reference's intervals"]
    difference = first_difference(card.settings, settings)
    if difference is None:
        difference = (
            f"no setting differs; the reference was measured {card.measured}, this is code {code_version}"
        )
    return [*lines, f"look here first: {difference}"]
