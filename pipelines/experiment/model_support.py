"""Which CLIPs of open_clip can be tuned, and by which methods; built without weights."""

from dataclasses import dataclass

import torch

from vopcore.clip import blank, model_input, model_names, tokenizer_name, towers
from vopcore.methods import METHODS
from vopcore.methods.base import unmet_needs

ALL = "all methods"


@dataclass(frozen=True)
class ModelSupport:
    """One model: its parameters, pixels, words and tokenizer, and what can tune it.

    parameters: None where the model cannot be built here. methods: ALL, or why not all.
    """

    model: str
    parameters: int | None
    size: int
    words: int
    tokenizer: str
    methods: str


def model_supports() -> list[ModelSupport]:
    """A row for each model that open_clip lists; about a second each."""
    return [model_support(model) for model in model_names()]


def model_support(model: str) -> ModelSupport:
    """What one model reads and what can tune it."""
    size, words = model_input(model)
    tokenizer = tokenizer_name(model)
    try:
        with torch.device("meta"):
            clip = blank(model)
    except ValueError as error:  # files of Hugging Face that are not here
        return ModelSupport(model, None, size, words, tokenizer, str(error).removeprefix(f"{model}: "))

    methods = ALL
    vision, text, _ = towers(clip)
    for tower in (vision, text):
        if not tower.has_blocks:
            try:
                _ = tower.blocks
            except ValueError as error:
                methods = str(error).removeprefix(f"{model}: ")
    refused = [name for name, method in METHODS.items() if unmet_needs(method, vision)]
    if methods == ALL and refused:
        methods = f"{ALL} but {', '.join(refused)}"
    parameters = sum(parameter.numel() for parameter in clip.parameters())
    return ModelSupport(model, parameters, size, words, tokenizer, methods)


def as_text(rows: list[ModelSupport]) -> str:
    """The rows as a table to read."""
    lines = [f"{'model':38}{'parameters':>15}{'pixels':>8}{'words':>7}  {'tokenizer':38}tuned by"]
    for row in rows:
        parameters = "" if row.parameters is None else f"{row.parameters:,}"
        lines.append(
            f"{row.model:38}{parameters:>15}{row.size:>8}{row.words:>7}  {row.tokenizer:38}{row.methods}"
        )
    return "\n".join(lines)
