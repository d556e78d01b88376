"""Every key of a config with its type, default and description: what `pipelines/run.py --settings` prints."""

import json
import textwrap
import types
import typing
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vopcore.config.messages import section_of
from vopcore.config.sections import MethodRun, RunConfig, Train

WIDTH = 110
REQUIRED = "required"


@dataclass(frozen=True)
class Setting:
    """One key: `train.lr`, its type, its default as YAML writes it (or `required`) and what it is for."""

    key: str
    type: str
    default: str
    description: str


def settings() -> list[Setting]:
    """Every key of a config, in the order of the sections; a method's own options are in METHODS."""
    listed = _settings_of(RunConfig, "")
    listed += _settings_of(Train, "train.")
    for name in ("merge", "pooling"):
        listed.append(_setting(f"methods.NAME.{name}", MethodRun.model_fields[name]))
    listed.append(
        Setting(
            "compare",
            "list of names",
            "all",
            "Which of `methods` run: a list, one name, or `all`.",
        )
    )
    listed.append(
        Setting(
            "method.name",
            "text",
            "null",
            "One method alone; `method.OPTION` sets its options over the file's.",
        )
    )
    return listed


def settings_text() -> str:
    """The settings to read: a line for key, type and default, under it what the key is for."""
    lines = []
    for setting in settings():
        lines.append(f"{setting.key}  ({setting.type}, default: {setting.default})")
        lines += textwrap.wrap(
            setting.description,
            WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
        )
    return "\n".join(lines)


def _settings_of(section: type[BaseModel], prefix: str) -> list[Setting]:
    listed = []
    for name, field in section.model_fields.items():
        if section is RunConfig and name == "methods":
            listed.append(
                Setting(
                    "methods",
                    "settings by method",
                    REQUIRED,
                    field.description or "",
                )
            )
            continue
        inner = section_of(field.annotation)
        is_list = typing.get_origin(field.annotation) is tuple
        if inner is None or is_list:
            listed.append(_setting(prefix + name, field))
        else:
            listed += _settings_of(inner, f"{prefix}{name}.")
    return listed


def _setting(key: str, field: FieldInfo) -> Setting:
    default = REQUIRED
    if field.default is not PydanticUndefined:
        default = json.dumps(field.default)
    description = " ".join((field.description or "").split())
    return Setting(key, _type_name(field.annotation), default, description)


NAMES = {
    int: "integer",
    float: "number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}


def _type_name(annotation: Any) -> str:  # noqa: ANN401 - typing's own objects
    """A type in a user's words: `number or list of numbers`, `raw or jpeg`."""
    if annotation in NAMES:
        return NAMES[annotation]

    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin is tuple:
        return f"list of: {_type_name(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings"
    return " or ".join(_type_name(argument) for argument in arguments)
