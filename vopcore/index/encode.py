"""From the frames of a video's windows to their vectors, and from a text to the vector that finds them.

A folder holds what both need: `vopcore.tuned_model`'s files, and the frozen text tower in a file of its own,
so that answering a text reads no vision weights and does not ask where the frozen CLIP came from.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vopcore.clip import CLIP, blank, frozen_hash, looks_across_frames, share, tokenizer
from vopcore.index.header import BadIndexError
from vopcore.index.moments import Span
from vopcore.index.table import MomentRows
from vopcore.methods import saved
from vopcore.retriever import Pooling, Retriever, unit_vectors
from vopcore.tuned_model import SETTINGS_FILE, TUNED_FILE, ModelSettings, load_frozen
from vopcore.video import stack

TEXT_FILE = "text.safetensors"
BATCH = 32  # windows, or 4 times as many frames that are seen alone, encoded at once
TEXTS = 64  # captions encoded at once
MAX_LETTERS = 2000  # of a query: many times what a text tower reads; the tokenizer is slow on endless words


@dataclass(frozen=True)
class WindowFrames:
    """Windows of one video and the frames they are made of, each frame once.

    spans: W windows in order of time. pixels: uint8 [U, S, S, 3]; thumbnails: U JPEGs; times: float [U],
    seconds. frames: for each window the rows of `pixels` that it sees.
    """

    spans: Sequence[Span]
    pixels: np.ndarray
    thumbnails: Sequence[bytes]
    times: np.ndarray
    frames: Sequence[Sequence[int]]


class WindowEncoder:
    """A tuned CLIP that turns windows into the rows of an index.

    A method that sees each frame alone encodes each frame once, however many windows it is in.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        """folder: what `prepare_model` wrote. device: None is a GPU where there is one."""
        self.settings = read_settings(folder)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with torch.random.fork_rng(devices=[]):
            clip = load_frozen(folder, self.settings)
            tuned = saved.load_tuned(clip, folder / TUNED_FILE)
        retriever = Retriever(tuned, precision=self.settings.precision)
        self.retriever = retriever.to(self._device).eval()
        self.sees_frames_alone = _sees_frames_alone(tuned)

    @torch.inference_mode()
    def rows(self, windows: WindowFrames) -> MomentRows:
        """The rows of these windows, thumbnails included."""
        if self.sees_frames_alone:
            features = self._features_of_frames(windows.pixels)
            times = np.asarray(windows.times, np.float32)
            frames = [list(rows) for rows in windows.frames]
            pixel_rows = np.arange(len(times))
        else:
            features, frames, pixel_rows = self._features_in_windows(windows)
            times = np.asarray(windows.times, np.float32)[pixel_rows]

        vectors = []
        best = []
        thumbnails = []
        for rows in frames:
            vector = unit_vectors(features[rows][None], None)[0]
            vectors.append(vector.half().numpy())
            likeness = F.normalize(features[rows], dim=-1) @ vector
            row = rows[int(likeness.argmax())]
            best.append(times[row])
            thumbnails.append(windows.thumbnails[pixel_rows[row]])
        return MomentRows(
            spans=list(windows.spans),
            best=np.array(best, np.float32),
            vectors=np.stack(vectors),
            features=features.half().numpy(),
            times=times,
            frames=frames,
            thumbnails=thumbnails,
        )

    @torch.inference_mode()
    def example(self, pixels: np.ndarray) -> Tensor:
        """The query vector of an example. pixels: uint8 [F, S, S, 3], frames of a video, or one picture.
        -> unit float32 [D]."""
        tuning = self.retriever.clip.tuning
        if len(pixels) == 1 and not self.sees_frames_alone:
            # A still, as a video in which nothing moves.
            pixels = np.repeat(pixels, tuning.frames, axis=0)
        stacked, mask = stack([pixels[: tuning.frames]], tuning.frames)
        features = self._video(stacked, mask)
        return unit_vectors(features, mask)[0]

    def _features_of_frames(self, pixels: np.ndarray) -> Tensor:
        """uint8 [U, S, S, 3] -> float32 [U, D], each frame by itself."""
        parts = []
        for first in range(0, len(pixels), 4 * BATCH):
            alone = pixels[first : first + 4 * BATCH, None]
            parts.append(self._video(alone, None)[:, 0])
        return torch.cat(parts)

    def _features_in_windows(self, windows: WindowFrames) -> tuple[Tensor, list[list[int]], np.ndarray]:
        """Features of each window's frames, side by side; the rows of each window; the pixels of each row."""
        num_frames = self.retriever.clip.tuning.frames
        parts = []
        frames = []
        pixel_rows: list[int] = []
        for first in range(0, len(windows.frames), BATCH):
            chosen = windows.frames[first : first + BATCH]
            stacked, mask = stack([windows.pixels[rows] for rows in chosen], num_frames)
            features = self._video(stacked, mask)
            for window, rows in enumerate(chosen):
                parts.append(features[window, : len(rows)])
                frames.append(list(range(len(pixel_rows), len(pixel_rows) + len(rows))))
                pixel_rows.extend(rows)
        return torch.cat(parts), frames, np.array(pixel_rows)

    def _video(self, frames: np.ndarray, mask: Tensor | None) -> Tensor:
        """uint8 [B, F, S, S, 3], bool [B, F] -> float32 [B, F, D] on the CPU."""
        pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).to(self._device)
        if mask is not None:
            mask = None if mask.all() else mask.to(self._device)
        return self.retriever.video(pixels, mask).float().cpu()


class TextEncoder:
    """The text tower of a tuned CLIP alone. Several tuned methods share the memory of one frozen tower."""

    def __init__(self, folder: Path, frozen: "FrozenText | None" = None) -> None:
        """folder: what `prepare_model` wrote; frozen: its text tower, where it has been read before."""
        self.settings = read_settings(folder)
        self.frozen = frozen or FrozenText(folder)
        tuned, stored = saved.attach_tuned(self.frozen.clip, folder / TUNED_FILE)
        # `prepare_text_tower` has compared the frozen weights with what these were tuned on.
        if _text_metadata(folder) != {"backbone": self.frozen.backbone, "tuned": stored["tensors"]}:
            raise BadIndexError(f"{folder}: the text tower is not the one that the weights were tuned on")
        self.pooling: Pooling = stored["pooling"]
        self._tokenize = tokenizer(self.frozen.clip, self.settings.words)
        # Queries are few: fp32 also where the windows were encoded in bf16.
        self._retriever = Retriever(tuned).eval()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, D], not normalised. A long text loses words, never its end."""
        parts = []
        for first in range(0, len(texts), TEXTS):
            tokens = self._tokenize([shorten(text) for text in texts[first : first + TEXTS]])
            parts.append(self._retriever.text(tokens))
        return torch.cat(parts)


class FrozenText:
    """The frozen text tower of `prepare_model`'s folder, in a CLIP whose vision weights are never read."""

    def __init__(self, folder: Path) -> None:
        settings = read_settings(folder)
        # Memory that nobody writes to costs nothing: the vision tower is there in name only.
        with torch.device("meta"):
            self.clip = blank(_file_in(folder, settings.model))
        self.clip.to_empty(device="cpu")
        self.backbone = _text_metadata(folder)["backbone"]
        try:
            with safe_open(folder / TEXT_FILE, framework="pt") as file:
                # a safe_open has keys() and cannot be iterated
                for name in file.keys():  # noqa: SIM118
                    _set_tensor(self.clip, name, file.get_tensor(name))
        except (SafetensorError, OSError, AttributeError, TypeError) as error:
            raise _unreadable(folder, error) from None


def save_text_tower(
    folder: Path,
    clip: CLIP,
    tuned: str,
) -> str:
    """Write the frozen tensors that a text passes; returns the hash of all frozen weights.

    clip: untuned; tuned: the hash of the tuned tensors that were checked to belong to it.
    """
    backbone = frozen_hash(share(clip))
    tensors = {}
    for name, tensor in [*clip.named_parameters(), *clip.named_buffers()]:
        if not name.startswith("visual."):
            tensors[name] = tensor.detach().cpu().clone().contiguous()
    partial = folder / f"{TEXT_FILE}.part"
    save_file(tensors, partial, {"backbone": backbone, "tuned": tuned})
    partial.replace(folder / TEXT_FILE)
    return backbone


def _text_metadata(folder: Path) -> dict[str, str]:
    """The hashes in the text tower's file: of the frozen weights, `backbone`, and of the `tuned` ones."""
    try:
        with safe_open(folder / TEXT_FILE, framework="pt") as file:
            metadata = file.metadata() or {}
        return {name: metadata[name] for name in ("backbone", "tuned")}
    except (SafetensorError, OSError, KeyError) as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: Exception) -> BadIndexError:
    reason = " ".join(str(error).split())
    return BadIndexError(f"{folder / TEXT_FILE}: the text tower cannot be read: {reason}")


def read_settings(folder: Path) -> ModelSettings:
    """Raises BadIndexError where the folder holds no model."""
    try:
        return ModelSettings(**json.loads((folder / SETTINGS_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise BadIndexError(f"{folder / SETTINGS_FILE}: cannot be read: {reason}") from None


def shorten(text: str) -> str:
    """The beginning of an endless text; single words are cut too."""
    words = text[:MAX_LETTERS].split()
    return " ".join(word[:100] for word in words)


def _sees_frames_alone(clip: CLIP) -> bool:
    """Whether the features of a frame are the same whichever frames stand beside it."""
    if clip.tuning.fixed_frames:
        return False
    return not looks_across_frames(clip)


def _file_in(folder: Path, name: str) -> str:
    """The copied file of that name, else the name itself."""
    return str(folder / name) if (folder / name).is_file() else name


def _set_tensor(
    clip: CLIP,
    name: str,
    tensor: Tensor,
) -> None:
    """Put a tensor in the place of a parameter or buffer of the same shape."""
    path, _, leaf = name.rpartition(".")
    holder = clip.get_submodule(path)
    current = getattr(holder, leaf)
    if current.shape != tensor.shape:
        raise TypeError(f"{name} is {list(tensor.shape)}, not {list(current.shape)}")
    if isinstance(current, nn.Parameter):
        current.data = tensor
    else:
        holder._buffers[leaf] = tensor
