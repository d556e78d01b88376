"""The folder of a published run: everything in it is read from the run, nothing is typed anew."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import track
from pipelines.publishing.card import model_card
from vopcore.methods.saved import read

WEIGHTS = "tuned.safetensors"
SETTINGS = "settings.json"
METRICS = "metrics.json"
CARD = "README.md"


class PublishError(ValueError):
    """A run that cannot be published; one line."""


@dataclass(frozen=True)
class PublishedRun:
    """What a card is made of. `weights`: what `save_tuned` wrote into the file of tuned weights."""

    run: track.TrackedRun
    weights: dict[str, Any]
    splits: dict[str, dict[str, int]]  # of each split, how many captions and videos


def write_folder(store: track.RunStore, run: track.TrackedRun, name: str, folder: Path) -> None:
    """Write the run to `folder`, which appears whole or not at all; `name`: how others will call it.

    Raises PublishError where the run has no weights, and where the folder holds something else.
    """
    if folder.exists() and not _is_ours(folder):
        raise PublishError(f"{folder}: is there and holds no published run; name a new folder")

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".publish-") as temporary:
        part = Path(temporary) / "part"
        part.mkdir()
        _fill(store, track.with_all_metrics(store, run), name, part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)


def _is_ours(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return not names or {WEIGHTS, CARD} <= names


def _fill(store: track.RunStore, run: track.TrackedRun, name: str, part: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        try:
            weights = track.fetch(store, run.id, f"tuned/{WEIGHTS}", Path(downloads))
        except track.StoreError as error:
            raise PublishError(f"{run.name} has no tuned weights to publish: {error}") from None
        shutil.copy(weights, part / WEIGHTS)

    settings, _ = read(part / WEIGHTS)  # which compares the tensors with their hash
    published = PublishedRun(run, settings, track.splits(store, run.id))
    (part / SETTINGS).write_text(json.dumps(dict(sorted(run.params.items())), indent=1))
    (part / METRICS).write_text(json.dumps(dict(sorted(run.metrics.items())), indent=1))
    (part / CARD).write_text(model_card(name, published.run, published.weights, published.splits))
