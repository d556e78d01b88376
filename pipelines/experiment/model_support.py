"""Which CLIPs of open_clip can be tuned, and by which methods; built without weights."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from vopcore.clip import CLIP, blank, empty_copy, model_input, model_names, tokenizer_name
from vopcore.methods import METHODS, tune

FRAMES = 12
WORKS = "+"
OTHER_OPTIONS = "o"  # the method's defaults do not fit the model: smaller ones do
IMPOSSIBLE = "-"
UNKNOWN = "?"  # files that the model is built from are not here
LEGEND = "+ works, o with other options than the defaults, - not possible, ? files of the model are missing"


@dataclass(frozen=True)
class ModelSupport:
    """One model: its parameters, pixels, words and tokenizer, and what can tune it.

    parameters: None where the model cannot be built here. marks: a mark for each method. reasons: why not,
    or not with the default options, for the methods of which that is so.
    """

    model: str
    parameters: int | None
    size: int
    words: int
    tokenizer: str
    marks: dict[str, str]
    reasons: dict[str, str]

    @property
    def takes_all(self) -> bool:
        """Whether every method can tune it, some perhaps with other options."""
        return set(self.marks.values()) <= {WORKS, OTHER_OPTIONS}


def model_supports(models: Iterable[str] | None = None) -> list[ModelSupport]:
    """A row for each of these models, by default all that open_clip lists; about a second each, and the
    memory of one model without weights.
    """
    return [model_support(model) for model in models or model_names()]


def model_support(model: str) -> ModelSupport:
    """What one model reads and what can tune it."""
    facts = model_input(model)
    marks = dict.fromkeys(METHODS, UNKNOWN)
    parameters = None
    try:
        with torch.device("meta"):
            clip = blank(model)
    except ValueError as error:  # files of Hugging Face that are not here
        reasons = dict.fromkeys(METHODS, str(error).removeprefix(f"{model}: "))
    else:
        parameters = sum(parameter.numel() for parameter in clip.parameters())
        reasons = {}
        for method in METHODS:
            marks[method], reason = _attempt(clip, model, method)
            if reason:
                reasons[method] = reason

    return ModelSupport(
        model=model,
        parameters=parameters,
        size=facts.size,
        words=facts.words,
        tokenizer=tokenizer_name(model),
        marks=marks,
        reasons=reasons,
    )


def _attempt(
    clip: CLIP,
    model: str,
    method: str,
) -> tuple[str, str]:
    """The mark of a method on a model, and the reason where it does not just work."""
    options = METHODS[method]()
    try:
        # on a copy, as a method changes the CLIP that it is given
        with torch.device("meta"):
            tune(empty_copy(clip), options, FRAMES)
    except ValueError as error:
        reason = str(error).removeprefix(f"{model}: ")
    else:
        return WORKS, ""

    # What is wrong with an option begins with its name.
    names = [field.name for field in dataclasses.fields(options)]
    first_word = reason.partition(":")[0]
    if first_word in names:
        return OTHER_OPTIONS, reason
    return IMPOSSIBLE, reason


def as_text(rows: list[ModelSupport]) -> str:
    """The rows as a table to read, the names of the methods downwards above their column of marks."""
    lines = _header()

    # many models share a reason: it is written once, and has a number
    notes: dict[str, int] = {}
    for row in rows:
        numbers = set()
        for reason in row.reasons.values():
            number = notes.setdefault(reason, len(notes) + 1)
            numbers.add(number)

        parameters = "" if row.parameters is None else f"{row.parameters:,}"
        facts = f"{row.model:38}{parameters:>15}{row.size:>8}{row.words:>7}  {row.tokenizer:38}"
        marks = "".join(row.marks.values())
        listed = ",".join(str(number) for number in sorted(numbers))
        lines.append(f"{facts}{marks} {listed}".rstrip())

    lines += ["", LEGEND]
    for reason, number in notes.items():
        lines.append(f"{number:>4}  {reason}")
    return "\n".join([*lines, "", *_summary(rows)])


def _header() -> list[str]:
    """The names of the columns; those of the methods end in the last line."""
    left = f"{'model':38}{'parameters':>15}{'pixels':>8}{'words':>7}  {'tokenizer':38}"
    height = max(len(method) for method in METHODS)
    names = [method.rjust(height) for method in METHODS]

    lines = []
    *upper_letters, last_letters = zip(*names, strict=True)
    for letters in upper_letters:
        lines.append(" " * len(left) + "".join(letters))
    lines.append(f"{left}{''.join(last_letters)} why not")
    return lines


def _summary(rows: list[ModelSupport]) -> list[str]:
    """How many of the models each method can tune, and how many all methods can."""
    counts: Counter[str] = Counter()
    for row in rows:
        for method, mark in row.marks.items():
            if mark in (WORKS, OTHER_OPTIONS):
                counts[method] += 1

    num_all = sum(row.takes_all for row in rows)
    per_method = ", ".join(f"{method} {counts[method]}" for method in METHODS)
    return [f"of {len(rows)} models every method can tune {num_all}; each method: {per_method}"]
