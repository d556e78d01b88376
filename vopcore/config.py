"""One YAML file and its `key=value` overrides, read into a frozen, typed RunConfig before any work starts.

Whatever is wrong is one `ConfigError` line: the file, the key, and what would be right.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from vopcore.datasets import DATASETS
from vopcore.methods import METHODS, Method
from vopcore.video.sample import SAMPLERS


class ConfigError(ValueError):
    """A mistake in a config, told in one line."""


def _absolute(path: str) -> str:
    """Ray's workers run in another folder, so a path must not depend on the current one; URIs stay."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _file(name: str) -> str:
    """A name of open_clip's stays; what looks like a file must be one, and becomes absolute."""
    if Path(name).suffix not in (".json", ".pt", ".pth", ".bin", ".safetensors") and "/" not in name:
        return name
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return str(path)


def _share(value: object) -> object:
    """`1%` is 0.01."""
    return float(value[:-1]) / 100 if isinstance(value, str) and value.endswith("%") else value


Location = Annotated[str, AfterValidator(_absolute)]
NameOrFile = Annotated[str, AfterValidator(_file)]
Share = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the config: nothing unknown in it, nothing changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Upstream(Section):
    """How the quickstart's tiny CLIP is trained on stills, once."""

    steps: Positive = 400
    batch_size: Positive = 256
    lr: float = Field(3e-3, gt=0)


class Shapes(Section):
    """The quickstart's own world, rendered into `data.root`; left out for real videos."""

    clips: Positive = 1000  # training clips
    twins: Positive = 100  # test clips, each beside its time-reversed twin
    seed: int = Field(0, ge=0)
    upstream: Upstream = Upstream()


class Data(Section):
    """Which benchmark, and where its files are."""

    dataset: str
    root: Location  # the annotation files
    videos: Location | None = None  # the videos' folder where it is not under `root`


class Video(Section):
    """Which frames of a video are kept, and how."""

    frames: Positive = 12  # what the model sees
    stored_frames: Positive | None = None  # what a shard holds, at least `frames`: training picks among them
    size: Positive = 224  # pixels of the square crop
    sampler: str = "uniform"
    storage: Literal["auto", "raw", "jpeg"] = "auto"
    quality: int = Field(95, ge=1, le=100)  # of JPEG
    max_failed: Share = 0.01  # share of videos that may fail before the run stops
    time_limit: float = Field(120, gt=0)  # seconds per video
    shard_megabytes: Positive = 256

    @property
    def kept(self) -> int:
        return self.stored_frames or self.frames


class Clip(Section):
    """The frozen model: an open_clip architecture (or its JSON file) and weights (tag or checkpoint file)."""

    model: NameOrFile = "ViT-B-32-quickgelu"
    pretrained: NameOrFile | None = "openai"
    words: Positive = 77  # tokens of a caption, start and end included


class Train(Section):
    """How a method is tuned; a method's own `train:` section overrides single keys."""

    epochs: int = Field(5, ge=0)
    batch_size: Positive = 32  # over all workers
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.2, ge=0)
    decay_biases_and_prompts: bool = True
    warmup: Share = 0.1  # of all steps
    clip_grad: float | None = Field(1.0, gt=0)  # largest global gradient norm
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-6, gt=0)
    captions: Literal["one", "all"] = "one"  # per epoch: one caption of each video, or every pair
    learn_logit_scale: bool = False


class MethodRun(Section):
    """One row of the comparison: a method with its options, its pooling and its training settings."""

    name: str
    method: Method
    pooling: Literal["mean", "query_aware"] = "mean"
    train: Train = Train()

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Resources(Section):
    """What one tuning run holds."""

    workers: Positive = 1
    cpus_per_worker: Positive = 1
    gpu: bool = False  # one GPU per worker
    max_failures: int = Field(3, ge=0)  # restarts of a run whose worker or node died


class MLflow(Section):
    """Where numbers go: `uri` null means MLFLOW_TRACKING_URI, else a SQLite file in `output`."""

    uri: str | None = None
    experiment: str | None = None  # null: the config's name


Stage = Literal["ingest", "tune"]


class RunConfig(Section):
    """Everything one `pipelines/run.py` does."""

    name: str
    output: Location  # shards, checkpoints, results
    seed: int = Field(0, ge=0)
    run: str = ""  # a label: the same label continues a run, a new one starts anew
    stages: tuple[Stage, ...] = ("ingest", "tune")
    shapes: Shapes | None = None
    data: Data
    video: Video = Video()
    clip: Clip = Clip()
    methods: tuple[MethodRun, ...]
    resources: Resources = Resources()
    mlflow: MLflow = MLflow()


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply `key=value` overrides, check every key and value.

    Raises:
        ConfigError: one line naming the file, the key and what would be right.
    """
    raw = _load(Path(path), overrides)
    try:
        return _typed(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error, RunConfig)}") from None


def fingerprint(value: Any) -> str:  # noqa: ANN401 - anything JSON can say
    """Eight characters that change when a setting does."""
    text = json.dumps(
        value,
        sort_keys=True,
        default=lambda x: dataclasses.asdict(x) if dataclasses.is_dataclass(x) else str(x),
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _load(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    for item in overrides:
        if "=" not in item:
            raise ConfigError(f"{item!r} is not an override; write key=value, for example train.epochs=2")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        raw = OmegaConf.to_container(merged, resolve=True)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from None
    except (OmegaConfBaseException, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds no settings")
    return raw


def _typed(raw: dict[str, Any]) -> RunConfig:
    raw = dict(raw)
    shared = _mapping(raw.pop("train", None), "train")
    known = _mapping(raw.pop("methods", None), "methods")
    chosen = raw.pop("compare", None)
    if "method" in raw:  # one method, on top of what the file says of it
        single = _mapping(raw.pop("method"), "method")
        name = single.pop("name", None)
        if name is None:
            raise ConfigError("method.name: missing, for example method.name=vop")
        known = known | {name: _merged(_mapping(known.get(name), f"methods.{name}"), single)}
        chosen = [name]
    names = list(known) if chosen in (None, "all") else chosen
    if not isinstance(names, list) or not names:
        raise ConfigError(
            "methods: none given; write `method: {name: vop}` or `methods: {vop: {}, full: {}}`"
        )
    raw["methods"] = [
        _method_run(name, _mapping(known.get(name), f"methods.{name}"), shared) for name in names
    ]
    for key in raw:
        if key not in RunConfig.model_fields:
            extra = ("train", "method", "compare")
            raise ConfigError(_unknown(key, key, [*RunConfig.model_fields, *extra]))
    config = RunConfig(**raw)
    _check_names(config)
    return config


def _check_names(config: RunConfig) -> None:
    """What types cannot say."""
    if config.data.dataset not in DATASETS:
        raise ConfigError(_unknown("data.dataset", config.data.dataset, list(DATASETS), "dataset"))
    if config.video.sampler not in SAMPLERS:
        raise ConfigError(_unknown("video.sampler", config.video.sampler, list(SAMPLERS), "sampler"))
    if config.video.kept < config.video.frames:
        raise ConfigError(
            f"video.stored_frames: {config.video.kept} is fewer than video.frames, {config.video.frames}"
        )
    for run in config.methods:
        if run.train.batch_size % config.resources.workers:
            raise ConfigError(
                f"train.batch_size: {run.train.batch_size} does not divide over"
                f" resources.workers = {config.resources.workers}"
            )
    if config.shapes is None and "://" not in config.data.root and not Path(config.data.root).is_dir():
        raise ConfigError(f"data.root: no such folder: {config.data.root}")
    if config.data.videos and "://" not in config.data.videos and not Path(config.data.videos).is_dir():
        raise ConfigError(f"data.videos: no such folder: {config.data.videos}")


def _method_run(name: str, entry: dict[str, Any], shared: dict[str, Any]) -> MethodRun:
    if name not in METHODS:
        raise ConfigError(_unknown("methods", name, list(METHODS), "method"))
    settings = {key: entry.pop(key) for key in ("pooling", "train") if key in entry}
    settings["train"] = shared | _mapping(settings.get("train"), f"methods.{name}.train")
    fields = [field.name for field in dataclasses.fields(METHODS[name])]
    for key in entry:
        if key not in fields:
            raise ConfigError(_unknown(f"methods.{name}.{key}", key, [*fields, "pooling", "train"]))
    try:
        method = TypeAdapter(METHODS[name]).validate_python(entry)
        return MethodRun(name=name, method=method, **settings)
    except ValidationError as error:
        raise ConfigError(_first(error, MethodRun, f"methods.{name}.")) from None


def _mapping(value: object, key: str) -> dict[str, Any]:
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


def _unknown(path: str, word: str, known: list[str], kind: str = "key") -> str:
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = "" if path.rsplit(".", 1)[-1] == word else f" {word!r}"
    return f"{path}: unknown {kind}{shown}; {hint}known: {', '.join(known)}"


def _first(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first mistake of a validation, as `key: what is wrong`."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        for part in first["loc"][:-1]:
            model = _model_of(model.model_fields[str(part)].annotation)
        return _unknown(prefix + path, str(first["loc"][-1]), list(model.model_fields))
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
