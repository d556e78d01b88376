"""The settings of `pipelines/index.py`: which model, which windows, and how the work is done."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from vopcore.config.messages import first_mistake, unknown
from vopcore.config.read import ConfigError, load
from vopcore.config.sections import Location, NameOrFile, Positive, Section
from vopcore.storage import local_path

SAMPLERS = ("uniform", "segment", "clip4clip_1fps", "head")


def _model(name: str) -> str:
    """A folder or a file becomes absolute; names of models and URIs of MLflow stay."""
    if ":/" in name:
        return name
    path = local_path(name)
    looks_like_a_path = path.suffix in (".safetensors", ".json") or "/" in name
    if not looks_like_a_path:
        return name
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}")
    return str(path)


class SearchConfig(Section):
    """Everything one `pipelines/index.py` does."""

    index: Location | None = None
    """Where the index goes, s3:// and gs:// too; null: outputs/indexes/NAME, by the name of the folder."""
    model: Annotated[str, AfterValidator(_model)] = "ViT-B-32-quickgelu"
    """What embeds: runs:/ID/METHOD or models:/NAME@ALIAS of MLflow, a tuned.safetensors (with `clip`), the
    folder of a saved model, or the name of a plain CLIP."""
    clip: NameOrFile | None = None
    """The CLIP below a tuned.safetensors; null: the one whose name the file holds."""
    pretrained: NameOrFile | None = "openai"
    """Weights of the CLIP: a tag of open_clip's or a checkpoint file; a model of MLflow knows its own."""
    mlflow_uri: str | None = None
    """Where MLflow keeps the model; null means MLFLOW_TRACKING_URI."""
    words: Positive = 77
    """Tokens of a text, with a plain CLIP or a tuned.safetensors."""
    frames: Positive = 12
    """Frames of a window, with a plain CLIP; tuned weights know theirs."""
    sampler: Literal["uniform", "segment", "clip4clip_1fps", "head"] = "uniform"
    """Which frames of a window, with a plain CLIP or a tuned.safetensors."""
    seconds: float = Field(8.0, gt=0, allow_inf_nan=False)
    """Length of a window; a video of up to one and a half is one window."""
    every: float = Field(4.0, gt=0, allow_inf_nan=False)
    """Seconds from the beginning of one window to the next, at most `seconds`."""
    engine: Literal["arrow", "lance"] = "arrow"
    """arrow compares every moment exactly, for up to some 100,000; lance (pip install -e '.[search]') for
    more."""
    encoders: Positive = 1
    """Actors that hold the CLIP, at most; on several machines as many as there are GPUs."""
    gpu: bool = False
    """Whether each of them holds a GPU."""
    time_limit: float = Field(120, gt=0, allow_inf_nan=False)
    """Seconds for each pass over a video, of some twenty minutes."""
    watch_every: float = Field(30, gt=0, allow_inf_nan=False)
    """Seconds between looks at the folder, with --watch."""


def read_search_config(path: str | Path, overrides: list[str]) -> SearchConfig:
    """Read `path` with `key=value` laid over it.

    Raises:
        ConfigError: one line naming the file, the key and what would be right.
    """
    raw = load(Path(path), overrides, SearchConfig)
    for key in raw:
        if key not in SearchConfig.model_fields:
            raise ConfigError(f"{path}: {unknown(key, key, list(SearchConfig.model_fields))}")
    try:
        config = SearchConfig(**raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_mistake(error, SearchConfig)}") from None
    if config.every > config.seconds:
        raise ConfigError(
            f"{path}: every: {config.every:g} is more than seconds, {config.seconds:g}; parts of a video "
            "would be in no window"
        )
    return config
