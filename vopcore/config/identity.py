"""What a setting is, wherever it stands: files by their content, not by their path."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from vopcore.config.sections import Backbone, MethodRun

UNTRAINED = "zero_shot"  # the one method that has nothing to train


def fingerprint(value: Any) -> str:  # noqa: ANN401 - anything JSON can say
    """Eight characters that change when a setting does."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _plain(value: object) -> object:
    """What JSON takes of a value that it does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def backbone(clip: Backbone) -> dict[str, Any]:
    """The model and its weights: open_clip's names as they are, files as `name@hash of their bytes`."""
    return {
        "model": _named(clip.model),
        "pretrained": _named(clip.pretrained),
        "words": clip.words,
    }


def _named(name: str | None) -> str | None:
    if name is None or not Path(name).is_file():
        return name
    with Path(name).open("rb") as file:
        return f"{Path(name).name}@{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def is_trained(run: MethodRun) -> bool:
    """Whether anything is tuned."""
    return run.name != UNTRAINED and run.train.epochs > 0


def searches(run: MethodRun) -> bool:
    """Whether its learning rate is still to be found."""
    return is_trained(run) and run.train.lr == "search"


def training_settings(run: MethodRun) -> dict[str, Any]:
    """The keys of `train` that this run's numbers depend on."""
    if not is_trained(run):
        return {"epochs": 0, "precision": run.train.precision}

    # a setting that is new here and not used leaves the keys of runs of before as they were
    unread: Any = {"checkpoint_every": True, "search": {"at_once"}}
    if run.train.distill is None:
        unread["distill"] = True
    if not searches(run):
        unread["search"] = True
    return run.train.model_dump(exclude=unread)
