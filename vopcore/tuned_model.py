"""A tuned method in a folder, ready to use: captions and videos to vectors, captions to ranked videos.

`save_model` writes the folder, `TunedModel` reads it. MLflow keeps it as a model and calls `_load_pyfunc`;
nothing here asks for MLflow or for more than torch, open_clip, PyAV, safetensors and NumPy.
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

from vopcore.clip import CLIP, load, tokenizer
from vopcore.embedder import CAPTIONS_AT_ONCE, Embedder
from vopcore.methods import load_tuned
from vopcore.methods.saved import read
from vopcore.retriever import Precision, Retriever
from vopcore.video import Decoded, Interpolation, Resize, VideoError, choose, decode, stack

SETTINGS_FILE = "settings.json"
TUNED_FILE = "tuned.safetensors"
VIDEOS_FILE = "videos.safetensors"
MAX_COPIED = 100 * 2**20  # bytes: a larger file of frozen weights is named, not copied
DEFAULT_TOP = 10  # moments of an index for a caption
COLUMNS = ("caption", "video")


@dataclass(frozen=True)
class ModelSettings:
    """How captions and videos were read, and by which frozen CLIP.

    `model` and `pretrained` are those of `vopcore.clip.load`; without `pretrained` the weights are drawn from
    `seed`. `words` are tokens of a caption, `size` pixels of the square that the CLIP sees; `resize` and
    `interpolation`, of `vopcore.video.decode`, make it. A model saved without the two has seen OpenAI's.
    """

    model: str
    pretrained: str | None
    seed: int
    words: int
    frames: int
    stored_frames: int
    size: int
    sampler: str
    precision: Precision = "fp32"
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"

    def decode(self, file: str | Path, count: int) -> Decoded:
        """`count` frames of a video as the CLIP is to see them. Raises VideoError."""
        return decode(
            file,
            count=count,
            size=self.size,
            sampler=self.sampler,
            resize=self.resize,
            interpolation=self.interpolation,
        )


class VideoVectors(NamedTuple):
    """Videos that captions are compared with: their names, and `Retriever.vectors` of them, float32."""

    names: list[str]
    vectors: np.ndarray


def save_model(
    folder: Path,
    settings: ModelSettings,
    tuned: Path,
    videos: VideoVectors | None,
) -> None:
    """Write everything that `TunedModel` needs; `tuned` is what `save_tuned` wrote.

    A model config and small frozen weights are copied; larger ones are named where they are, published ones
    by their tag.
    """
    folder.mkdir(parents=True)
    shutil.copy(tuned, folder / TUNED_FILE)

    saved_settings = asdict(settings)
    for key in ("model", "pretrained"):
        file = Path(saved_settings[key] or "")
        if file.is_file() and file.stat().st_size <= MAX_COPIED:
            copied = shutil.copy(file, folder / f"{key}{file.suffix}")
            saved_settings[key] = Path(copied).name
    (folder / SETTINGS_FILE).write_text(json.dumps(saved_settings, indent=1))

    if videos is not None:
        # names are a tensor too: the header, for which metadata would do, is limited to 100 MB
        names = np.frombuffer(json.dumps(videos.names).encode(), np.uint8)
        save_file({"vectors": videos.vectors, "names": names}, folder / VIDEOS_FILE)


class UndecodableError(ValueError):
    """A video file that cannot be decoded; the message names it."""


class TunedModel:
    """A tuned method that embeds captions and videos, and ranks the videos saved with it.

    tuned_hash: of the tuned weights. Raises ValueError, one line, where the frozen weights are gone or are
    not those it was tuned on.
    """

    def __init__(
        self,
        folder: Path,
        device: str | None = None,
        pretrained: str | None = None,
    ) -> None:
        """device: None is a GPU where there is one. pretrained: frozen weights at another place."""
        settings = json.loads((folder / SETTINGS_FILE).read_text())
        self._settings = ModelSettings(**settings)
        if not device:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)

        # What is drawn here is overwritten, or drawn as it was: nobody else's random numbers change.
        with torch.random.fork_rng(devices=[]):
            clip = load_frozen(folder, self._settings, pretrained)
            tuned = load_tuned(clip, folder / TUNED_FILE)
        stored, _ = read(folder / TUNED_FILE)
        self.tuned_hash = stored["tensors"]

        retriever = Retriever(tuned, precision=self._settings.precision)
        self._retriever = retriever.to(self._device).eval()
        self._embedder = Embedder(
            self._retriever,
            tokenizer(clip, self._settings.words),
        )
        self._videos = _read_videos(folder / VIDEOS_FILE, self._device)

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Float32 [N, D]; unit vectors with `pooling: mean`. A long caption loses words, never its end."""
        features = self._embedder.texts(captions)
        return F.normalize(features, dim=-1) if self._retriever.pooling == "mean" else features

    @torch.no_grad()
    def embed_videos(self, paths: Sequence[str]) -> Tensor:
        """`Retriever.vectors` of video files: [N, D], or [N, F, D] with `pooling: query_aware`.

        Raises ValueError naming the file that cannot be decoded.
        """
        return self._embedder.videos(paths, self._read_frames)

    @torch.no_grad()
    def similarity(self, text: Tensor, videos: Tensor) -> Tensor:
        """`embed_captions` [N, D] and `embed_videos` of V videos -> Float32 [N, V] on the CPU."""
        on_device = self._retriever.rank(text.to(self._device), videos.to(self._device))
        return on_device.float().cpu()

    def get_raw_model(self) -> "TunedModel":
        """What `mlflow.pyfunc.load_model(...).get_raw_model()` answers: this, without MLflow around it."""
        return self

    @torch.no_grad()
    def rank_videos(
        self,
        captions: Sequence[str],
        count: int,
    ) -> tuple[list[list[str]], list[list[float]]]:
        """For each caption the `count` saved videos that score best, best first, and their scores.

        Raises ValueError where the model was saved without videos.
        """
        if self._videos is None:
            raise ValueError("top_k: this model was saved without a gallery (mlflow.model: vectors)")

        names, vectors = self._videos
        count = min(count, len(names))
        ranked_names = []
        ranked_scores = []
        for start in range(0, len(captions), CAPTIONS_AT_ONCE):
            chunk = captions[start : start + CAPTIONS_AT_ONCE]
            text = self._embedder.texts(chunk)
            similarity = self._retriever.rank(text, vectors)
            best = similarity.topk(count, dim=1)
            for indices in best.indices.tolist():
                ranked_names.append([names[index] for index in indices])
            ranked_scores += best.values.tolist()
        return ranked_names, ranked_scores

    def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - pandas'
        """What MLflow calls. rows: a pandas DataFrame with a column `caption` or `video` (paths), a text or a
        list of texts in each row.

        Without `top_k`: vectors, a NumPy array. With `top_k` above 0: the captions as a DataFrame with their
        best videos (`top`) and similarities (`scores`), as in PREDICTIONS. With `index`, where
        `pipelines/index.py` has indexed videos by these weights, `top` are moments: video, start, end, score.
        Where files cannot be decoded, a DataFrame: `video`, `vector` (None) and `error`. Raises ValueError,
        one line.
        """
        column = _column(rows)

        # MLflow makes one row of {"caption": ["a", "b"]}.
        rows = rows[[column]].explode(column, ignore_index=True)
        _check_texts(column, rows[column].tolist())

        if params is None:
            params = {}
        count = int(params.get("top_k", 0))
        index = str(params.get("index", ""))
        if count < 0 or (count and column == "video"):
            raise ValueError(f"top_k: {count}; it is how many videos to rank for each caption, 0 for vectors")

        if column == "video":
            return self._embed_files(rows)
        return self._answer_captions(rows, count, index)

    def _answer_captions(self, rows: Any, count: int, index: str) -> Any:  # noqa: ANN401 - pandas'
        """`predict` of `rows.caption`."""
        captions = rows["caption"].tolist()
        if index:
            moments = self._find_moments(captions, index, count or DEFAULT_TOP)
            return rows.assign(top=moments)
        if not count:
            return self.embed_captions(captions).cpu().numpy()

        names, scores = self.rank_videos(captions, count)
        return rows.assign(top=names, scores=scores)

    def _embed_files(self, rows: Any) -> Any:  # noqa: ANN401 - pandas'
        """The vectors of `rows.video`, an array; a DataFrame with reasons where a file cannot be decoded."""
        paths = rows["video"].tolist()
        try:
            return self.embed_videos(paths).cpu().numpy()
        except UndecodableError:
            pass

        vectors: list[list[float] | None] = []
        errors: list[str | None] = []
        for path in paths:
            try:
                vectors.append(self.embed_videos([path])[0].tolist())
                errors.append(None)
            except UndecodableError as error:
                vectors.append(None)
                errors.append(str(error))
        return rows.assign(vector=vectors, error=errors)

    def _find_moments(
        self,
        captions: list[str],
        uri: str,
        count: int,
    ) -> list[list[dict[str, Any]]]:
        """For each caption the best moments of an index that was made by these weights."""
        # `vopcore.index` imports this file.
        from vopcore.index import Question, open_index

        index = open_index(uri)
        if index.header.tuned != self.tuned_hash:
            raise ValueError(
                f"index: {uri} was made by other weights ({index.header.method}); index the videos with this"
                " model: python pipelines/index.py FOLDER model=..."
            )

        moments = []
        for features in self._embedder.texts(captions).cpu():
            question = Question(features=features, top=count)
            of_caption = []
            for answer in index.search(question):
                moment = {
                    "video": answer.video,
                    "start": answer.start,
                    "end": answer.end,
                    "score": answer.score,
                }
                of_caption.append(moment)
            moments.append(of_caption)
        return moments

    def _read_frames(self, paths: list[str]) -> tuple[Tensor, Tensor]:
        """Frames that the CLIP sees, UInt8 [B, F, 3, S, S], and which are real, Bool [B, F]."""
        videos = [self._decode(path) for path in paths]
        stacked, mask = stack(videos, self._settings.frames)
        return torch.from_numpy(stacked).movedim(-1, -3), mask

    def _decode(self, path: str) -> np.ndarray:
        """The frames that the CLIP sees of one video, UInt8 [n, H, W, 3], n at most `frames`."""
        settings = self._settings
        try:
            video = settings.decode(path, settings.stored_frames)
        except VideoError as error:
            raise UndecodableError(f"{path}: {error}") from None

        indices = choose(len(video.pixels), settings.frames, None)
        return video.pixels[indices]


def _load_pyfunc(
    path: str,
    model_config: Mapping[str, str] | None = None,
) -> TunedModel:
    """The name and arguments by which MLflow loads a model; `auto` is what `TunedModel` does by itself."""
    options = {key: None if value == "auto" else value for key, value in (model_config or {}).items()}
    return TunedModel(Path(path), **options)


def load_frozen(
    folder: Path,
    settings: ModelSettings,
    pretrained: str | None = None,
) -> CLIP:
    """The frozen CLIP of a saved model; `pretrained`: its weights, where they are at another place.

    Draws from torch's global generator. Raises ValueError, one line, where the weights are gone.
    """
    model = _copied_or_named(folder, settings.model)
    pretrained = pretrained or settings.pretrained
    weights = _copied_or_named(folder, pretrained) if pretrained else None
    if weights and Path(weights).is_absolute() and not Path(weights).is_file():
        remedy = "load_model(..., model_config={'pretrained': PATH})"
        raise ValueError(f"{weights}: the frozen weights are not there; say where they are: {remedy}")

    torch.default_generator.manual_seed(settings.seed)  # and not that of a GPU
    return load(model, weights)


def _copied_or_named(folder: Path, name: str) -> str:
    """The file of that name in `folder` if it was copied there, else the name itself."""
    if (folder / name).is_file():
        return str(folder / name)
    return name


def _read_videos(path: Path, device: torch.device) -> tuple[list[str], Tensor] | None:
    """Names and vectors of the saved videos; None if the model was saved without."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt", device=str(device)) as file:
        names = file.get_tensor("names").cpu().numpy().tobytes()
        return json.loads(names), file.get_tensor("vectors")


def _check_texts(column: str, values: list[object]) -> None:
    """ValueError that names the first row which holds something else."""
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"row {row}: the {column} is {value!r}, not a text")


def _column(rows: Any) -> str:  # noqa: ANN401 - a pandas DataFrame
    """The column of COLUMNS that `rows` has."""
    present = [name for name in COLUMNS if name in rows.columns]
    if len(present) != 1:
        given = "both" if present else "something else"
        wanted = "{'caption': [...]} or {'video': [...]}, paths"
        raise ValueError(f"the input is {wanted}, or a DataFrame with one of the columns; not {given}")
    return present[0]
