"""The folder of a published run: everything in it is read from the run, nothing is typed anew."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipelines import track
from pipelines.publishing.card import model_card
from vopcore.methods.saved import read
from vopcore.storage import scratch_folder

WEIGHTS = "tuned.safetensors"
SETTINGS = "settings.json"
METRICS = "metrics.json"
CARD = "README.md"


class PublishError(ValueError):
    """A run that cannot be published; one line."""


def write_folder(
    store: track.RunStore,
    run: track.TrackedRun,
    name: str,
    folder: Path,
) -> None:
    """Write the run to `folder`, which appears whole or not at all; `name`: how others will call it.

    Raises PublishError where the run has no weights, and where the folder holds something else.
    """
    # What is replaced is deleted: only a folder that this command wrote.
    if folder.exists() and not _is_ours(folder):
        raise PublishError(f"{folder}: is there and holds no published run; name a new folder")

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".publish-") as temporary:
        # Beside the folder, on the same disk: a rename is all or nothing.
        new_folder = Path(temporary) / "new"
        new_folder.mkdir()
        whole_run = track.with_all_metrics(store, run)
        _fill(store, whole_run, name, new_folder)

        shutil.rmtree(folder, ignore_errors=True)
        new_folder.rename(folder)


def _is_ours(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    return WEIGHTS in names and CARD in names


def _fill(
    store: track.RunStore,
    run: track.TrackedRun,
    name: str,
    folder: Path,
) -> None:
    with scratch_folder() as downloads:
        try:
            weights = track.fetch(store, run.id, f"tuned/{WEIGHTS}", downloads)
        except track.StoreError as error:
            raise PublishError(f"{run.name} has no tuned weights to publish: {error}") from None
        shutil.copy(weights, folder / WEIGHTS)

    # Reading compares the tensors with their hash: what is published loads.
    settings, _ = read(folder / WEIGHTS)
    splits = track.splits(store, run.id)
    card = model_card(name, run, settings, splits)

    (folder / CARD).write_text(card)
    _write_json(folder / SETTINGS, run.params)
    _write_json(folder / METRICS, run.metrics)


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    """By name, so that two runs can be compared line by line."""
    by_name = dict(sorted(values.items()))
    text = json.dumps(by_name, indent=1)
    file.write_text(text)
