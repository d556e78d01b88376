"""What is wrong with a config, in our own words: the key, what it must be and what was given."""

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

INTEGER = "must be an integer"
NUMBER = "must be a number"
BOOLEAN = "must be true or false"
TEXT = "must be a text"
LIST = "must be a list"

# pydantic's name of a mistake -> our words; {name} is taken from what pydantic says of the limit
WORDS = {
    "int_type": INTEGER,
    "int_parsing": INTEGER,
    "int_from_float": INTEGER,
    "int_parsing_size": "must be an integer of fewer digits",
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "must be a finite number",
    "bool_type": BOOLEAN,
    "bool_parsing": BOOLEAN,
    "string_type": TEXT,
    "string_too_short": "must not be empty",
    "tuple_type": LIST,
    "list_type": LIST,
    "dict_type": "must be settings (key: value)",
    "model_type": "must be settings (key: value)",
    "missing": "missing",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be greater than or equal to {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be less than or equal to {le}",
    "literal_error": "must be {expected}",
    "too_short": "must have at least {min_length} entries, has {actual_length}",
    "too_long": "must have at most {max_length} entries, has {actual_length}",
    "missing_argument": "missing",
}
WITHOUT_VALUE = ("missing", "missing_argument", "value_error", "too_short", "too_long")


def unknown(
    path: str,
    word: str,
    known: list[str],
    kind: str = "key",
) -> str:
    """One line about a word that is not known, with the nearest that is."""
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    named_by_path = path.rsplit(".", 1)[-1] == word
    shown = "" if named_by_path else f" {word!r}"
    return f"{path}: unknown {kind}{shown}; {hint}known: {', '.join(known)}"


def first_mistake(
    error: ValidationError,
    model: type[BaseModel],
    prefix: str = "",
) -> str:
    """The first mistake of a validation, as `key: what is wrong, got what was given`."""
    errors = error.errors()
    # a key that takes a value or a list of them has a mistake for each; the deepest names the entry
    of_first_key = [mistake for mistake in errors if mistake["loc"][:1] == errors[0]["loc"][:1]]
    first = max(of_first_key, key=lambda mistake: len(mistake["loc"]))
    keys = config_keys(first["loc"], model)
    path = prefix + ".".join(keys)
    if first["type"] == "extra_forbidden":
        section = section_at(model, keys[:-1])
        return unknown(path, keys[-1], list(section.model_fields))

    return f"{path.rstrip('.')}: {in_our_words(first)}"


def in_our_words(mistake: ErrorDetails) -> str:
    """What is wrong, and what was given."""
    kind = mistake["type"]
    details = mistake.get("ctx", {})
    if kind == "value_error":  # one of our own checks
        return str(details["error"])

    words = WORDS.get(kind, "is not what can stand here")
    words = words.format(**details)
    if kind in WITHOUT_VALUE:
        return words

    # YAML reads `run: 001` as the number 1
    quoted = (
        " (a number in quotes is a text)" if kind == "string_type" and mistake["input"] is not None else ""
    )
    return f"{words}, got {mistake['input']!r}{quoted}"


def config_keys(
    location: tuple[int | str, ...],
    model: type[BaseModel] | None,
) -> list[str]:
    """The keys a user wrote: pydantic's location also holds the branches of a union, such as `tuple[...]`."""
    keys: list[str] = []
    for part in location:
        if model is not None and keys and isinstance(part, str) and not _is_key(part, model):
            continue
        keys.append(str(part))
        model = _next_section(model, str(part))
    return keys


def section_at(model: type[BaseModel], keys: list[str]) -> type[BaseModel]:
    """The section that `keys` lead to."""
    for key in keys:
        model = _next_section(model, key) or model
    return model


def section_of(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - typing's own objects
    """The section in `Section` or `Section | None`; None where the annotation holds no section."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _next_section(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    if model is None or key not in model.model_fields:
        return model
    return section_of(model.model_fields[key].annotation) or model


def _is_key(part: str, model: type[BaseModel]) -> bool:
    # a key of a section, known or not, is a plain word; the branch of a union is written like a type
    is_type = "[" in part or "(" in part or "-" in part or part in ("float", "int", "str", "bool", "NoneType")
    return part in model.model_fields or not is_type
