"""Reads a YAML file and its `key=value` overrides into a RunConfig, or says in one line what is wrong."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, TypeAdapter, ValidationError

from vopcore.config.messages import first_mistake, section_of, unknown
from vopcore.config.method_options import arguments_of, option_classes
from vopcore.config.sections import Backbone, MethodRun, RunConfig, Train, Video
from vopcore.datasets import DATASETS

# of `video`: what a model may decide
PREPROCESSING_KEYS = ("size", "resize", "interpolation")

# Of a method's section: all that is no option of the method itself.
RUN_KEYS = ("merge", "pooling", "train")
NOT_GIVEN = "methods: none given; write `method: {name: vop}` or `methods: {vop: {}, full: {}}`"


class ConfigError(ValueError):
    """A mistake in a config, told in one line."""


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply `key=value` overrides, check every key and value.

    Raises:
        ConfigError: one line naming the file, the key and what would be right.
    """
    return complete(read_draft(path, overrides), path)


def read_draft(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """What `read_config` finds before it loads torch: names, types, places, what excludes each other.

    In the place of each method stand its options alone. Raises ConfigError.
    """
    raw = load(Path(path), overrides, RunConfig)
    try:
        return _typed(_with_other_files(raw, Path(path)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_mistake(error, RunConfig)}") from None


def complete(draft: RunConfig, path: str | Path) -> RunConfig:
    """The config of a draft that was read from `path`: with the methods, and what the model decides.

    Raises:
        ConfigError: an unknown sampler, an option out of its method's range, an unknown model.
    """
    from vopcore.video.sample import SAMPLERS  # loads torch and the decoder

    try:
        _check_known("video.sampler", draft.video.sampler, list(SAMPLERS), "sampler")
        runs = [_with_method(run) for run in draft.methods]
        return _with_model_facts(draft.model_copy(update={"methods": tuple(runs)}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_backbone(settings: Mapping[str, Any]) -> Backbone:
    """A frozen CLIP from the settings that a run was made with. Raises ConfigError."""
    try:
        return Backbone.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(first_mistake(error, Backbone, "clip.")) from None


def read_others(config: RunConfig) -> list[RunConfig]:
    """The configs of `evaluate.also`, in their order.

    Raises:
        ConfigError: what is wrong with one of them, or two of the same name.
    """
    others = []
    names = {config.name}
    for entry in config.evaluate.also:
        try:
            other = read_config(entry.file, dotlist(entry.set))
        except ConfigError as error:
            raise ConfigError(f"evaluate.also: {error}") from None

        # its numbers go by its name
        if other.name in names:
            raise ConfigError(
                f"evaluate.also: {entry.file}: another config is named {other.name} too; write"
                f" {{file: {entry.file}, set: {{name: another}}}}"
            )
        names.add(other.name)
        others.append(other)
    return others


def _with_other_files(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """`evaluate.also` of the config at `path`, with each entry's file in full. Raises ConfigError."""
    evaluate = raw.get("evaluate")
    if not isinstance(evaluate, dict) or not evaluate.get("also"):
        return raw

    # one entry needs no list, and one without settings no section
    also = evaluate["also"]
    if not isinstance(also, list):
        also = [also]

    entries = []
    for entry in also:
        named = entry if isinstance(entry, dict) else {"file": entry}
        name = named.get("file")
        if not isinstance(name, str):
            raise ConfigError(f"evaluate.also: must be names or files of configs, got {entry!r}")
        file = _other_file(name, path)
        entries.append(named | {"file": str(file)})
    return raw | {"evaluate": evaluate | {"also": entries}}


def _other_file(name: str, path: Path) -> Path:
    """A name is a file beside `path`."""
    file = Path(name).expanduser()
    is_name = file.suffix != ".yaml" and "/" not in name
    if is_name:
        file = path.parent / f"{name}.yaml"
    if file.is_file():
        return file.absolute()

    if is_name:
        beside = sorted(other.stem for other in path.parent.glob("*.yaml"))
        raise ConfigError(unknown("evaluate.also", name, beside, "config"))
    raise ConfigError(f"evaluate.also: no such file: {file}")


def flat(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    pairs: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            pairs |= flat(value, f"{prefix}{name}.")
        else:
            pairs[f"{prefix}{name}"] = value
    return pairs


def dotlist(settings: Mapping[str, Any]) -> list[str]:
    """Settings as `key=value`, for `read_config`."""
    return [f"{name}={json.dumps(value)}" for name, value in flat(settings).items()]


def load(
    path: Path,
    overrides: Sequence[str],
    model: type[BaseModel],
) -> dict[str, Any]:
    """The settings of a YAML file with `key=value` laid over them, not checked yet.

    model: what the settings will become; says which overrides are texts, taken as they are typed.
    Raises ConfigError.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")

    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise ConfigError(f"{path}: holds no settings (key: value)")
        over = _overrides(path, overrides, model)
        merged = OmegaConf.merge(loaded, *over)
        settings = OmegaConf.to_container(merged, resolve=True)
        assert isinstance(settings, dict), "what is laid over settings does not make a list of them"
        return {str(key): value for key, value in settings.items()}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from None
    except (OmegaConfBaseException, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None


def _overrides(
    path: Path,
    items: Sequence[str],
    model: type[BaseModel],
) -> list[DictConfig]:
    for item in items:
        if "=" not in item:
            raise ConfigError(f"{item!r} is not an override; write key=value, for example train.epochs=2")
    try:
        return [_override(item, model) for item in items]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _override(item: str, model: type[BaseModel]) -> DictConfig:
    """`key=value` as settings. A key that takes a text takes all that is typed: `run=001`, `output=/x #1`."""
    key, _, value = item.partition("=")
    value = value.strip()
    is_quoted = value[:1] in ("'", '"')
    if not is_quoted and _takes_text(key, model):
        text = None if value in ("null", "~") else value
        settings = OmegaConf.create({})
        OmegaConf.update(settings, key, text)
        return settings

    if not is_quoted and " #" in value:
        raise ConfigError(f"{key}: {value!r} holds ' #', where YAML ends a value; put it in quotes")
    try:
        return OmegaConf.from_dotlist([item])
    except yaml.YAMLError:
        raise ConfigError(f"{key}: {value!r} is not a value of YAML; put it in quotes") from None


def _takes_text(key: str, model: type[BaseModel]) -> bool:
    """Whether a key such as `data.root` or `configs.shapes.set.data.root` takes a text."""
    parts = key.split(".")

    # a benchmark's settings over those of its configs
    if "set" in parts:
        start = parts.index("set") + 1
        parts = parts[start:]
        model = RunConfig

    for number, part in enumerate(parts):
        if part not in model.model_fields:
            return False
        annotation = model.model_fields[part].annotation
        section = section_of(annotation)
        if section is None:
            options = [annotation, *getattr(annotation, "__args__", ())]
            is_last = number == len(parts) - 1
            return str in options and is_last
        model = section
    return False


def _typed(raw: dict[str, Any]) -> RunConfig:
    """The draft of a config."""
    raw = dict(raw)
    shared = mapping(raw.pop("train", None), "train")
    known = mapping(raw.pop("methods", None), "methods")
    chosen = raw.pop("compare", None)

    # one method, on top of what the file says of it
    if "method" in raw:
        single = mapping(raw.pop("method"), "method")
        name = single.pop("name", None)
        if name is None:
            raise ConfigError("method.name: missing, for example method.name=vop")
        in_file = mapping(known.get(name), f"methods.{name}")
        known = known | {name: _merged(in_file, single)}
        chosen = [name]

    names = _chosen_methods(chosen, list(known))
    if not names:
        raise ConfigError(NOT_GIVEN)

    # told here, as the keys that were taken out above are known too
    for key in raw:
        if key not in RunConfig.model_fields:
            known_keys = [*RunConfig.model_fields, "train", "method", "compare"]
            raise ConfigError(unknown(key, key, known_keys))

    # told before it is laid under a method's own: `train.lr`, not `methods.vop.train.lr`
    try:
        Train(**shared)
    except ValidationError as error:
        raise ConfigError(first_mistake(error, Train, "train.")) from None

    config = RunConfig(**raw, methods=())
    _check_names(config)
    runs = []
    for name in names:
        entry = mapping(known.get(name), f"methods.{name}")
        runs.append(_method_run(name, entry, shared))
    for run in runs:
        _check_training(run, config)
    return config.model_copy(update={"methods": tuple(runs)})


def _with_model_facts(config: RunConfig) -> RunConfig:
    """`auto` replaced by what the model's own config says; of several sizes its own comes first."""
    preprocessing = [getattr(config.video, key) for key in PREPROCESSING_KEYS]
    chosen = [config.clip.words, *preprocessing]
    has_several_sizes = isinstance(config.video.size, tuple)
    if "auto" not in chosen and not has_several_sizes:
        return config

    # only here: it loads torch and open_clip
    from vopcore.clip import model_input

    try:
        facts = model_input(config.clip.model, config.clip.pretrained)
    except ValueError as error:
        raise ConfigError(f"clip.model: {error}") from None

    clip = config.clip
    if clip.words == "auto":
        clip = clip.model_copy(update={"words": facts.words})

    frames = {}
    for key in PREPROCESSING_KEYS:
        if getattr(config.video, key) == "auto":
            frames[key] = getattr(facts, key)
    try:
        video = Video(**config.video.model_dump() | frames)
    except ValidationError as error:
        # A model config of one's own may want what no decoder of ours does.
        mistake = first_mistake(error, Video, "video.")
        raise ConfigError(f"{config.clip.model}: {mistake}") from None

    video = video.seen_by(facts.size)
    return config.model_copy(update={"clip": clip, "video": video})


def _chosen_methods(compare: object, known: list[str]) -> list[str]:
    """The methods that `compare` names: a list, one name, names between commas, `all`; null is all."""
    if compare is None or compare == "all":
        return known
    if isinstance(compare, str):
        compare = [name.strip() for name in compare.split(",")]
    if not isinstance(compare, list):
        raise ConfigError(f"compare: must be a list of methods or `all`, got {compare!r}")

    if not compare:
        raise ConfigError("compare: is empty; name methods, or leave it out for all of `methods`")
    for name in compare:
        if not isinstance(name, str):
            raise ConfigError(f"compare: must be names of methods, got {name!r}")
    return compare


def _check_names(config: RunConfig) -> None:
    """What types cannot say."""
    _check_known("data.dataset", config.data.dataset, list(DATASETS), "dataset")
    if config.video.kept < config.video.frames:
        raise ConfigError(
            f"video.stored_frames: {config.video.kept} is fewer than video.frames, {config.video.frames}"
        )

    most = config.resources.max_workers
    if most is not None and most < config.resources.workers:
        raise ConfigError(
            f"resources.max_workers: {most} is fewer than resources.workers, {config.resources.workers}"
        )

    if config.shapes is None and not Path(config.data.root).is_dir():
        raise ConfigError(f"data.root: no such folder: {config.data.root}")
    videos = config.data.videos
    if videos and "://" not in videos and not Path(videos).is_dir():
        raise ConfigError(f"data.videos: no such folder: {videos}")


def _check_known(
    key: str,
    name: str,
    known: list[str],
    kind: str,
) -> None:
    if name not in known:
        raise ConfigError(unknown(key, name, known, kind))


def _check_training(run: MethodRun, config: RunConfig) -> None:
    """Training settings that other settings exclude."""
    workers = config.resources.workers
    if run.train.batch_size % workers:
        raise ConfigError(
            f"train.batch_size: {run.train.batch_size} does not divide over resources.workers = {workers}"
        )
    search = run.train.search
    if search.least >= search.most:
        raise ConfigError(
            f"methods.{run.name}.train.search: least, {search.least:g}, is not below most, {search.most:g}"
        )
    if run.train.prefix_cache and run.train.augment:
        raise ConfigError(
            f"methods.{run.name}.train.prefix_cache: with augment every epoch sees other pixels, so"
            " nothing can be kept; leave one of the two out"
        )


def _method_run(
    name: str,
    entry: dict[str, Any],
    shared: dict[str, Any],
) -> MethodRun:
    """A method's section; its options are known and of the right types, their ranges are not looked at."""
    known_methods = option_classes()
    if name not in known_methods:
        raise ConfigError(unknown("methods", name, list(known_methods), "method"))
    settings = {key: entry.pop(key) for key in RUN_KEYS if key in entry}
    own_training = mapping(settings.get("train"), f"methods.{name}.train")
    settings["train"] = shared | own_training

    options_class = known_methods[name]
    fields = [field.name for field in dataclasses.fields(options_class)]
    for key in entry:
        if key not in fields:
            raise ConfigError(unknown(f"methods.{name}.{key}", key, [*fields, *RUN_KEYS]))
    try:
        options: Any = TypeAdapter(options_class).validate_python(entry)
        return MethodRun(
            name=name,
            method=options,
            **settings,
        )
    except ValidationError as error:
        raise ConfigError(first_mistake(error, MethodRun, f"methods.{name}.")) from None


def _with_method(run: MethodRun) -> MethodRun:
    """The method itself in the place of its options."""
    from vopcore.methods import METHODS  # loads torch and open_clip

    options = arguments_of(run.method)
    try:
        method = TypeAdapter(METHODS[run.name]).validate_python(options)
    except ValidationError as error:
        mistake = first_mistake(error, MethodRun, f"methods.{run.name}.")
        raise ConfigError(mistake) from None
    return run.model_copy(update={"method": method})


def mapping(value: object, key: str) -> dict[str, Any]:
    """A copy of a section as a dict with text keys; a section left empty is {}. Raises ConfigError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: expected settings (key: value), got {value!r}")
    return {str(name): entry for name, entry in value.items()}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section."""
    merged = base | over
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merged(base[key], value)
    return merged
