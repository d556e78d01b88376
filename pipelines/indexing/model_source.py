"""From the word `model=...` to a saved model in a folder, whatever the word names."""

import os
import shutil
from pathlib import Path
from typing import cast, get_args

from vopcore.clip import model_input
from vopcore.config import ConfigError
from vopcore.config.search import SearchConfig
from vopcore.index.model import ModelFacts, prepare_plain_model, prepare_text_tower, prepare_tuned_file
from vopcore.methods import saved
from vopcore.tuned_model import SETTINGS_FILE, ModelSettings
from vopcore.video import Interpolation, Resize


def prepare(config: SearchConfig, folder: Path) -> ModelFacts:
    """Write the model that `config` names, and its text tower, into `folder`.

    Raises ConfigError or another ValueError, one line: no such model, weights that are gone or others.
    """
    model = config.model
    if model.startswith(("runs:/", "models:/")):
        _fetch(config, folder)
    elif Path(model).is_dir():
        if not (Path(model) / SETTINGS_FILE).is_file():
            raise ConfigError(f"model: {model} is a folder without {SETTINGS_FILE}: no saved model")
        shutil.copytree(model, folder)
    elif Path(model).suffix == ".safetensors":
        stored, _ = saved.read(model)
        clip = config.clip or stored["model"]
        prepare_tuned_file(folder, _settings(config, clip), Path(model))
    else:
        prepare_plain_model(folder, _settings(config, model))
    return prepare_text_tower(folder)


def _settings(config: SearchConfig, clip: str) -> ModelSettings:
    facts = model_input(clip, config.pretrained)
    # A model config of one's own may want what no decoder of ours does.
    if facts.resize not in get_args(Resize) or facts.interpolation not in get_args(Interpolation):
        raise ConfigError(
            f"model: {clip} is made for pictures of `{facts.resize}` and `{facts.interpolation}`; decoded are"
            f" {', '.join(get_args(Resize))} and {', '.join(get_args(Interpolation))}"
        )
    return ModelSettings(
        model=clip,
        pretrained=config.pretrained,
        seed=0,
        words=min(config.words, facts.words),
        frames=config.frames,
        stored_frames=config.frames,
        size=facts.size,
        sampler=config.sampler,
        resize=cast(Resize, facts.resize),
        interpolation=cast(Interpolation, facts.interpolation),
    )


def _fetch(config: SearchConfig, folder: Path) -> None:
    """A model that a run has logged."""
    # MLflow takes seconds to import, and most models are not there.
    from pipelines.track.fetch_model import fetch_model

    tracking_uri = config.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking_uri:
        raise ConfigError(
            f"model: {config.model} is in MLflow; say where that is, for example "
            "mlflow_uri=sqlite:///outputs/quickstart/mlflow.db"
        )
    download = folder.with_name(f"{folder.name}-download")
    download.mkdir()
    shutil.copytree(fetch_model(config.model, tracking_uri, download), folder)
