"""Reads a YAML file and its `key=value` overrides into a RunConfig, or says in one line what is wrong."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, TypeAdapter, ValidationError

from vopcore.config.sections import MethodRun, RunConfig, Train
from vopcore.datasets import DATASETS
from vopcore.methods import METHODS
from vopcore.video.sample import SAMPLERS


class ConfigError(ValueError):
    """A mistake in a config, told in one line."""


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply `key=value` overrides, check every key and value.

    Raises:
        ConfigError: one line naming the file, the key and what would be right.
    """
    raw = load(Path(path), overrides)
    try:
        return _typed(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_mistake(error, RunConfig)}") from None


def load(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of a YAML file with `key=value` laid over them, not checked yet. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    for item in overrides:
        if "=" not in item:
            raise ConfigError(f"{item!r} is not an override; write key=value, for example train.epochs=2")
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise ConfigError(f"{path}: holds no settings (key: value)")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(merged, resolve=True)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from None
    except (OmegaConfBaseException, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None


def _typed(raw: dict[str, Any]) -> RunConfig:
    raw = dict(raw)
    shared = mapping(raw.pop("train", None), "train")
    known = mapping(raw.pop("methods", None), "methods")
    chosen = raw.pop("compare", None)
    if "method" in raw:  # one method, on top of what the file says of it
        single = mapping(raw.pop("method"), "method")
        name = single.pop("name", None)
        if name is None:
            raise ConfigError("method.name: missing, for example method.name=vop")
        known = known | {name: _merged(mapping(known.get(name), f"methods.{name}"), single)}
        chosen = [name]
    names = list(known) if chosen in (None, "all") else chosen
    if not isinstance(names, list) or not names:
        raise ConfigError(
            "methods: none given; write `method: {name: vop}` or `methods: {vop: {}, full: {}}`"
        )
    try:
        Train(**shared)
    except ValidationError as error:
        raise ConfigError(first_mistake(error, Train, "train.")) from None
    raw["methods"] = [
        _method_run(name, mapping(known.get(name), f"methods.{name}"), shared) for name in names
    ]
    for key in raw:
        if key not in RunConfig.model_fields:
            extra = ("train", "method", "compare")
            raise ConfigError(unknown(key, key, [*RunConfig.model_fields, *extra]))
    config = RunConfig(**raw)
    _check_names(config)
    return config


def _check_names(config: RunConfig) -> None:
    """What types cannot say."""
    if config.data.dataset not in DATASETS:
        raise ConfigError(unknown("data.dataset", config.data.dataset, list(DATASETS), "dataset"))
    if config.video.sampler not in SAMPLERS:
        raise ConfigError(unknown("video.sampler", config.video.sampler, list(SAMPLERS), "sampler"))
    if config.video.kept < config.video.frames:
        raise ConfigError(
            f"video.stored_frames: {config.video.kept} is fewer than video.frames, {config.video.frames}"
        )
    most = config.resources.max_workers
    if most is not None and most < config.resources.workers:
        raise ConfigError(
            f"resources.max_workers: {most} is fewer than resources.workers, {config.resources.workers}"
        )
    for run in config.methods:
        if run.train.batch_size % config.resources.workers:
            raise ConfigError(
                f"train.batch_size: {run.train.batch_size} does not divide over"
                f" resources.workers = {config.resources.workers}"
            )
        if run.train.prefix_cache and run.train.augment:
            raise ConfigError(
                f"methods.{run.name}.train.prefix_cache: with augment every epoch sees other pixels, so"
                " nothing can be kept; leave one of the two out"
            )
    if config.shapes is None and not Path(config.data.root).is_dir():
        raise ConfigError(f"data.root: no such folder: {config.data.root}")
    if config.data.videos and "://" not in config.data.videos and not Path(config.data.videos).is_dir():
        raise ConfigError(f"data.videos: no such folder: {config.data.videos}")


def _method_run(name: str, entry: dict[str, Any], shared: dict[str, Any]) -> MethodRun:
    if name not in METHODS:
        raise ConfigError(unknown("methods", name, list(METHODS), "method"))
    settings = {key: entry.pop(key) for key in ("pooling", "train") if key in entry}
    settings["train"] = shared | mapping(settings.get("train"), f"methods.{name}.train")
    fields = [field.name for field in dataclasses.fields(METHODS[name])]
    for key in entry:
        if key not in fields:
            raise ConfigError(unknown(f"methods.{name}.{key}", key, [*fields, "pooling", "train"]))
    try:
        method = TypeAdapter(METHODS[name]).validate_python(entry)
        return MethodRun(name=name, method=method, **settings)
    except ValidationError as error:
        raise ConfigError(first_mistake(error, MethodRun, f"methods.{name}.")) from None


def mapping(value: object, key: str) -> dict[str, Any]:
    """A section as a dict of its own; nothing is an empty one. Raises ConfigError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: expected settings (key: value), got {value!r}")
    return dict(value)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: _merged(base[k], v)
        for k, v in over.items()
        if isinstance(v, dict) and isinstance(base.get(k), dict)
    }
    return base | over | both


def unknown(path: str, word: str, known: list[str], kind: str = "key") -> str:
    """One line about a word that is not known, with the nearest that is."""
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = "" if path.rsplit(".", 1)[-1] == word else f" {word!r}"
    return f"{path}: unknown {kind}{shown}; {hint}known: {', '.join(known)}"


def first_mistake(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first mistake of a validation, as `key: what is wrong`."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        for part in first["loc"][:-1]:
            model = _model_of(model.model_fields[str(part)].annotation)
        return unknown(prefix + path, str(first["loc"][-1]), list(model.model_fields))
    if first["type"] == "missing":
        return f"{prefix}{path}: missing"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return (
        f"{prefix}{path}: {message[0].lower()}{message[1:]}{given}"
        if path
        else prefix.rstrip(".") + ": " + message
    )


def _model_of(annotation: Any) -> type[BaseModel]:  # noqa: ANN401 - typing's own objects
    """The section in `Section` or `Section | None`."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
