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
        if self.value is None:
            return False
        return self.reference.holds(self.value)


def verdicts(card: Reference, metrics: Mapping[str, float]) -> list[NumberVerdict]:
    """One for every number of the card, in its order."""
    numbers = []
    for name, interval in card.numbers.items():
        value = metrics.get(name)
        numbers.append(NumberVerdict(name, interval, value))
    return numbers


def verdict_lines(
    card: Reference,
    numbers: list[NumberVerdict],
    settings: Mapping[str, str],
    code_version: str,
) -> list[str]:
    """What to print: a line for each number, and where to look if one is outside."""
    lines = [_number_line(number) for number in numbers]
    if all(number.is_inside for number in numbers):
        lines.append(f"all {len(numbers)} numbers are inside the reference's intervals")
        return lines

    # A setting explains more than the code does, so it is looked at first.
    difference = first_difference(card.settings, settings)
    if difference is None:
        difference = (
            f"no setting differs; the reference was measured {card.measured}, this is code {code_version}"
        )
    lines.append(f"look here first: {difference}")
    return lines


def _number_line(number: NumberVerdict) -> str:
    # Of one width, so that the names stand below each other.
    word = "inside " if number.is_inside else "OUTSIDE"
    value = "none"
    if number.value is not None:
        value = f"{number.value:.2f}"

    reference = number.reference
    interval = f"{reference.low:.2f} to {reference.high:.2f}"
    in_reference = f"{reference.value:.2f} ({interval})"
    return f"{word} {number.name}: {value}; the reference has {in_reference}"
