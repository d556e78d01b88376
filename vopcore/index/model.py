"""The model that goes with an index: what `vopcore.tuned_model` writes, and the text tower beside it."""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vopcore.clip import CLIP
from vopcore.index.encode import read_settings, save_text_tower
from vopcore.methods import METHODS, load_tuned, save_tuned, saved, tune
from vopcore.retriever import Pooling, Retriever
from vopcore.storage import Store, below, scratch_folder
from vopcore.tuned_model import SETTINGS_FILE, TUNED_FILE, ModelSettings, load_frozen, save_model

MODEL_FOLDER = "model"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What an index has to know of its model; see IndexHeader."""

    dimension: int
    pooling: Pooling
    frames: int
    method: str
    model: str
    backbone: str
    tuned: str


def prepare_plain_model(folder: Path, settings: ModelSettings) -> None:
    """Write a CLIP that nothing was tuned on as a saved model. Raises ValueError, one line."""
    with scratch_folder() as scratch, torch.random.fork_rng(devices=[]):
        clip = load_frozen(scratch, settings)
        tuned_file = scratch / TUNED_FILE
        save_tuned(
            tuned_file,
            tune(clip, METHODS["zero_shot"](), settings.frames),
            "mean",
        )
        save_model(folder, settings, tuned_file, None)


def prepare_tuned_file(
    folder: Path,
    settings: ModelSettings,
    tuned_file: Path,
) -> None:
    """Write a file of tuned weights with its CLIP as a saved model. Raises ValueError, one line."""
    stored, _ = saved.read(tuned_file)
    save_model(folder, replace(settings, frames=stored["frames"]), tuned_file, None)


def prepare_text_tower(folder: Path) -> ModelFacts:
    """Check a saved model, write its frozen text tower beside it, and say what it is.

    Raises ValueError, one line, where the frozen weights are gone or are not those it was tuned on.
    """
    settings = read_settings(folder)
    stored, _ = saved.read(folder / TUNED_FILE)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        clip = load_frozen(folder, settings)
        # Some methods change the text tower's own weights: those are not the frozen ones.
        tuned = load_tuned(clip, folder / TUNED_FILE)
        backbone = save_text_tower(folder, clip, stored["tensors"])
        dimension = _dimension(tuned)
    return ModelFacts(
        dimension=dimension,
        pooling=stored["pooling"],
        frames=settings.frames,
        method=stored["method"],
        model=stored["model"],
        backbone=backbone,
        tuned=stored["tensors"],
    )


def upload_model(folder: Path, uri: str) -> None:
    """Copy a prepared model into the index at `uri`."""
    store = Store(below(uri, MODEL_FOLDER))
    for path in sorted(folder.iterdir()):
        with store.writing(path.name) as target:
            shutil.copyfile(path, target)


def local_model(uri: str, tuned: str) -> Path:
    """The model of the index at `uri` as a local folder; that of a bucket is copied once per machine.

    tuned: the hash of its tuned weights.
    """
    store = Store(below(uri, MODEL_FOLDER))
    if store.is_local:
        return Path(store.root)

    folder = Path(tempfile.gettempdir()) / "vopcore-models" / f"{_key(uri)}-{tuned[:16]}"
    if not (folder / SETTINGS_FILE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            partial = Path(scratch) / "model"
            partial.mkdir()
            for name in store.names():
                (partial / name).write_bytes(store.read(name))
            if not folder.exists():
                partial.rename(folder)
    return folder


def _key(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def _dimension(clip: CLIP) -> int:
    """The length of the vectors that texts and frames become."""
    return int(Retriever(clip).text(torch.zeros(1, 3, dtype=torch.int64)).shape[1])
