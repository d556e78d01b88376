"""A tuned method in a folder, ready to use: captions and videos to vectors, captions to ranked videos.

`save` writes the folder, `Search` reads it. MLflow keeps it as a model and calls `_load_pyfunc`; nothing here
asks for MLflow or for more than torch, open_clip, PyAV, safetensors and NumPy.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from vopcore import clip as clips
from vopcore.methods import load_tuned
from vopcore.retriever import Precision, Retriever
from vopcore.video import VideoError, choose, decode, stack

READING, TUNED, GALLERY = "reading.json", "tuned.safetensors", "gallery.safetensors"
CARRIED = 100 * 2**20  # bytes: a larger file of frozen weights is named, not copied
CHUNK = 32  # videos, or 8 times as many captions, embedded at once
COLUMNS = ("caption", "video")


@dataclass(frozen=True)
class Reading:
    """How captions and videos were read, and by which frozen CLIP. `model`, `pretrained`: as `clip.load`'s;
    a null `pretrained` is drawn from `seed`."""

    model: str
    pretrained: str | None
    seed: int
    words: int
    frames: int
    stored_frames: int
    size: int
    sampler: str
    precision: Precision = "fp32"


class Gallery(NamedTuple):
    """Videos that captions are compared with: their names, and `Retriever.vectors` of them, float32."""

    videos: list[str]
    vectors: np.ndarray


def save(folder: Path, reading: Reading, tuned: Path, gallery: Gallery | None) -> None:
    """Write everything that `Search` needs; `tuned` is what `save_tuned` wrote.

    A model config and small frozen weights are copied; larger ones are named where they are, published ones
    by their tag.
    """
    folder.mkdir(parents=True)
    shutil.copy(tuned, folder / TUNED)
    said = asdict(reading)
    for key in ("model", "pretrained"):
        file = Path(said[key] or "")
        if file.is_file() and file.stat().st_size <= CARRIED:
            said[key] = shutil.copy(file, folder / f"{key}{file.suffix}").name
    (folder / READING).write_text(json.dumps(said, indent=1))
    if gallery is not None:
        names = {"videos": json.dumps(gallery.videos)}
        save_file({"vectors": gallery.vectors}, folder / GALLERY, names)


class Search:
    """A tuned method that answers captions and videos.

    Raises ValueError, one line, where the frozen weights are gone or are not those it was tuned on.
    """

    def __init__(self, folder: Path, device: str | None = None, pretrained: str | None = None) -> None:
        """device: None is a GPU where there is one. pretrained: frozen weights at another place."""
        self._reading = Reading(**json.loads((folder / READING).read_text()))
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten, or drawn as it was
            clip = _frozen(folder, self._reading, pretrained)
            tuned = load_tuned(clip, folder / TUNED)
        self._tokenize = clips.tokenizer(clip, self._reading.words)
        self._retriever = Retriever(tuned, precision=self._reading.precision).to(self._device).eval()
        self._gallery = _read_gallery(folder / GALLERY, self._device)

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Float32 [N, D]; unit vectors with `pooling: mean`. A long caption loses words, never its end."""
        features = self._features(captions)
        return F.normalize(features, dim=-1) if self._retriever.pooling == "mean" else features

    @torch.no_grad()
    def videos(self, paths: Sequence[str]) -> Tensor:
        """`Retriever.vectors` of video files: [N, D], or [N, F, D] with `pooling: query_aware`.

        Raises ValueError naming the file that cannot be decoded.
        """
        parts = []
        for start in range(0, len(paths), CHUNK):
            looks = [self._frames(path) for path in paths[start : start + CHUNK]]
            stacked, mask = stack(looks, self._reading.frames)
            pixels = torch.from_numpy(stacked).permute(0, 1, 4, 2, 3).to(self._device)
            mask = mask.to(self._device)
            features = self._retriever.video(pixels, None if mask.all() else mask)
            parts.append(self._retriever.vectors(features, mask))
        return torch.cat(parts) if parts else self._features([])

    @torch.no_grad()
    def top(self, captions: Sequence[str], count: int) -> tuple[list[list[str]], list[list[float]]]:
        """For each caption the `count` videos of the gallery that score best, best first, and their scores.

        Raises ValueError where there is no gallery.
        """
        if self._gallery is None:
            raise ValueError("top_k: this model was saved without a gallery (mlflow.model: vectors)")
        names, vectors = self._gallery
        videos, scores = [], []
        for start in range(0, len(captions), 8 * CHUNK):
            text = self._features(captions[start : start + 8 * CHUNK])
            best = self._retriever.rank(text, vectors).topk(min(count, len(names)), dim=1)
            videos += [[names[place] for place in row] for row in best.indices.tolist()]
            scores += best.values.tolist()
        return videos, scores

    def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - pandas'
        """What MLflow calls. rows: a pandas DataFrame with a column `caption` or `video` (paths), a text or a
        list of texts in each row.

        Without `top_k`: vectors, a NumPy array. With `top_k` above 0: the captions as a DataFrame with their
        best videos (`top`) and similarities (`scores`), as in PREDICTIONS. Raises ValueError, one line.
        """
        column = _column(rows)
        rows = rows[[column]].explode(column, ignore_index=True)  # MLflow's row of {"caption": ["a", "b"]}
        values, count = rows[column].tolist(), int((params or {}).get("top_k", 0))
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise ValueError(f"row {row}: the {column} is {value!r}, not a text")
        if count < 0 or (count and column == "video"):
            raise ValueError(f"top_k: {count}; it is how many videos to rank for each caption, 0 for vectors")
        if not count:
            embed = self.captions if column == "caption" else self.videos
            return embed(values).cpu().numpy()
        videos, scores = self.top(values, count)
        return rows.assign(top=videos, scores=scores)

    def _features(self, captions: Sequence[str]) -> Tensor:
        starts = range(0, max(len(captions), 1), 8 * CHUNK)
        chunks = [self._tokenize(list(captions[start : start + 8 * CHUNK])) for start in starts]
        return torch.cat([self._retriever.text(tokens.to(self._device)) for tokens in chunks])

    def _frames(self, path: str) -> np.ndarray:
        how = self._reading
        try:
            pixels = decode(path, count=how.stored_frames, size=how.size, sampler=how.sampler).pixels
        except VideoError as error:
            raise ValueError(f"{path}: {error}") from None
        return pixels[choose(len(pixels), how.frames, None)]


def _load_pyfunc(path: str, model_config: Mapping[str, str] | None = None) -> Search:
    """The name and the arguments by which MLflow loads a model; `auto` is what `Search` does by itself."""
    config = {key: None if value == "auto" else value for key, value in (model_config or {}).items()}
    return Search(Path(path), **config)


def _frozen(folder: Path, reading: Reading, pretrained: str | None) -> torch.nn.Module:
    """The frozen CLIP."""
    model, weights = (
        str(folder / name) if name and (folder / name).is_file() else name
        for name in (reading.model, pretrained or reading.pretrained)
    )
    if weights and Path(weights).is_absolute() and not Path(weights).is_file():
        way = "load_model(..., model_config={'pretrained': PATH})"
        raise ValueError(f"{weights}: the frozen weights are not there; say where they are: {way}")
    torch.default_generator.manual_seed(reading.seed)  # and not that of a GPU
    return clips.load(model, weights)


def _read_gallery(path: Path, device: torch.device) -> tuple[list[str], Tensor] | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt", device=str(device)) as file:
        return json.loads(file.metadata()["videos"]), file.get_tensor("vectors")


def _column(rows: Any) -> str:  # noqa: ANN401 - a pandas DataFrame
    """The one column that is there."""
    given = [name for name in COLUMNS if name in rows.columns]
    if len(given) != 1:
        said = "both" if given else "something else"
        wanted = "{'caption': [...]} or {'video': [...]}, paths"
        raise ValueError(f"the input is {wanted}, or a DataFrame with one of the columns; not {said}")
    return given[0]
