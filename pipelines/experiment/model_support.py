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
        with torch.device("meta"):
            tune(empty_copy(clip), options, FRAMES)
    except ValueError as error:
        reason = str(error).removeprefix(f"{model}: ")
    else:
        return WORKS, ""

    # What is wrong with an option begins with its name.
    names = [field.name for field in dataclasses.fields(options)]
    is_option = reason.partition(":")[0] in names
    return (OTHER_OPTIONS if is_option else IMPOSSIBLE), reason


def as_text(rows: list[ModelSupport]) -> str:
    """The rows as a table to read, the names of the methods downwards above their column of marks."""
    left = f"{'model':38}{'parameters':>15}{'pixels':>8}{'words':>7}  {'tokenizer':38}"
    height = max(len(method) for method in METHODS)
    names = [method.rjust(height) for method in METHODS]
    lines = []
    for letter in range(height):
        is_last = letter == height - 1
        column = left if is_last else " " * len(left)
        lines.append(column + "".join(name[letter] for name in names) + (" why not" if is_last else ""))

    notes: dict[str, int] = {}
    for row in rows:
        numbers = [notes.setdefault(reason, len(notes) + 1) for reason in row.reasons.values()]
        parameters = "" if row.parameters is None else f"{row.parameters:,}"
        facts = f"{row.model:38}{parameters:>15}{row.size:>8}{row.words:>7}  {row.tokenizer:38}"
        marks = "".join(row.marks.values())
        lines.append(f"{facts}{marks} {','.join(str(number) for number in sorted(set(numbers)))}".rstrip())

    lines += ["", LEGEND]
    lines += [f"{number:>4}  {reason}" for reason, number in notes.items()]
    return "\n".join([*lines, "", *_summary(rows)])


def _summary(rows: list[ModelSupport]) -> list[str]:
    """How many of the models each method can tune, and how many all methods can."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(method for method, mark in row.marks.items() if mark in (WORKS, OTHER_OPTIONS))
    num_all = sum(row.takes_all for row in rows)
    per_method = ", ".join(f"{method} {counts[method]}" for method in METHODS)
    return [f"of {len(rows)} models every method can tune {num_all}; each method: {per_method}"]
