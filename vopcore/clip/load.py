"""Build a CLIP, with or without weights; refuse weights meant for another activation."""

import copy
import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor

from vopcore.clip.interface import CLIP
from vopcore.clip.towers import model_name, towers

PREPROCESSING = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}  # OpenAI's, and of most models


@dataclass(frozen=True)
class Preprocessing:
    """How pixels reach a model, as open_clip's transform for it.

    size: height and width of what it sees. mean, std: of pixels in 0..1. interpolation: `bicubic` or
    `bilinear`. resize_mode: `shortest` (then the centre is cut out), `squash` (the whole picture, its shape
    changed) or `longest` (with borders).
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str


WRONG_SIZES = {
    "ViTamin-XL-384": 384
}  # where open_clip's config has not the size that its tower was built for


class ModelInput(NamedTuple):
    """What a model reads: frames of `size` x `size` pixels, captions of `words` tokens.

    resize, interpolation: how a picture becomes such a frame, as in `Preprocessing`.
    """

    size: int
    words: int
    resize: str
    interpolation: str


def model_names() -> list[str]:
    """The models that open_clip has configs of."""
    return open_clip.list_models()


def model_input(model: str, pretrained: str | None = None) -> ModelInput:
    """What a model reads, from its config and what is published of its weights; nothing is built.

    Raises ValueError for an unknown model.
    """
    config = model_config(model)
    size = config["vision_cfg"].get("image_size", 224)
    if isinstance(size, list):
        size = size[0]
    words = config["text_cfg"].get("context_length", 77)

    settings = PREPROCESSING | _published_preprocessing(model) | config.get("preprocess_cfg", {})
    if pretrained is not None:
        settings |= _known_weights(model, pretrained)
    return ModelInput(
        size=WRONG_SIZES.get(model, size),
        words=words,
        resize=settings["resize_mode"],
        interpolation=settings["interpolation"],
    )


def load(model: str, pretrained: str | None = None) -> CLIP:
    """An open_clip CLIP in fp32 and eval mode, on the CPU.

    model: a name open_clip knows (`ViT-B-32-quickgelu`), or the path of a model config of your own (`.json`).
    pretrained: one of open_clip's tags (`openai`; downloaded once), the path of a checkpoint
    (`.safetensors`, or `.pt` read with weights_only), or None for the random weights of the global seed.

    Raises ValueError, one line, for an unknown model, tag or file, weights that do not fit, weights trained
    with another activation, and files of Hugging Face that a tower needs and that are not there.
    """
    config = model_config(model)
    if pretrained is None:
        return blank(model)
    known = _known_weights(model, pretrained)
    if known and known.get("quick_gelu", False) != config.get("quick_gelu", False):
        raise ValueError(_wrong_activation(model, pretrained, known))
    if not Path(pretrained).is_file():
        return _download(model, pretrained)
    clip = blank(model)
    _read_checkpoint(clip, pretrained)
    clip.visual.preprocess_cfg |= {key: known[key] for key in PREPROCESSING if key in known}
    return clip


def blank(model: str) -> CLIP:
    """The architecture alone, on torch's current default device (`with torch.device("meta")`: no memory)."""
    config = model_config(model)
    preprocessing = config.pop("preprocess_cfg", {})
    is_custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    # weights come later, all together
    config["text_cfg"]["hf_model_pretrained"] = False
    config["vision_cfg"]["timm_model_pretrained"] = False

    if "hf_model_name" in config["text_cfg"]:
        from vopcore.clip.tokenizer import check_transformers  # which imports this file

        check_transformers(model)

    family = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
    if "multimodal_cfg" in config:
        family = open_clip.CoCa
    try:
        clip = family(**config)
    except (TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{model}: not a model config of open_clip: {_one_line(error)}") from None
    except (OSError, ImportError, ValueError) as error:  # of transformers
        from vopcore.clip.tokenizer import missing_files  # which imports this file

        source = config["text_cfg"].get("hf_model_name", model)
        raise ValueError(missing_files(model, "config", source, error)) from None
    return _finish(clip, model, _published_preprocessing(model) | preprocessing)


def preprocessing(clip: CLIP) -> Preprocessing:
    """How pixels reach this CLIP; OpenAI's way where it is not known."""
    settings = PREPROCESSING | dict(getattr(clip.visual, "preprocess_cfg", {}))
    return Preprocessing(
        size=towers(clip).vision.image_size,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
        resize_mode=settings["resize_mode"],
    )


def normalisation(clip: CLIP) -> tuple[Tensor, Tensor]:
    """Mean and deviation [3] of pixels in 0..1 that the CLIP was trained with; OpenAI's if unknown."""
    settings = preprocessing(clip)
    return torch.tensor(settings.mean), torch.tensor(settings.std)


def activation(clip: CLIP) -> str:
    """`quick_gelu` or `gelu`: what stands in the frozen MLPs; log it with a run."""
    return "quick_gelu" if any(isinstance(module, QuickGELU) for module in clip.modules()) else "gelu"


def model_config(model: str) -> dict[str, Any]:
    """The model config: `embed_dim`, `vision_cfg`, `text_cfg`, perhaps `quick_gelu`, `custom_text`."""
    if not model.endswith(".json"):
        config = open_clip.get_model_config(model)
        if config is None:
            near = ", ".join(get_close_matches(model, open_clip.list_models(), 5, 0))
            raise ValueError(f"{model}: open_clip has no such model; near it are {near}")
        return copy.deepcopy(config)

    try:
        config = json.loads(Path(model).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{model}: not a model config: {error}") from None
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
    if missing:
        raise ValueError(f"{model}: the model config lacks {', '.join(sorted(missing))}")
    return config


def _known_weights(model: str, pretrained: str) -> dict[str, Any]:
    """open_clip's entry for a tag, or for a local copy of a file it publishes; empty if it knows neither.

    Tags are listed by architecture: `ViT-B-32` has those of `ViT-B-32-quickgelu` too.
    """
    plain = model.removesuffix("-quickgelu")
    path = Path(pretrained)
    if not path.is_file():
        entry = open_clip.get_pretrained_cfg(model, pretrained)
        return entry or open_clip.get_pretrained_cfg(plain, pretrained)

    for name, tag in open_clip.list_pretrained():
        if name.removesuffix("-quickgelu") != plain:
            continue
        entry = open_clip.get_pretrained_cfg(name, tag)
        repository = entry.get("hf_hub", "").strip("/").split("/")[-1]
        is_file_of_url = path.name == Path(entry.get("url", "")).name
        if is_file_of_url or (repository and repository in pretrained):
            return entry
    return {}


def _published_preprocessing(model: str) -> dict[str, Any]:
    """What all published weights of a model agree on; empty where they differ or there are none."""
    entries = []
    for tag in open_clip.list_pretrained_tags_by_model(model):
        entry = open_clip.get_pretrained_cfg(model, tag)
        entries.append({key: entry[key] for key in PREPROCESSING if key in entry})
    agree = all(entry == entries[0] for entry in entries)
    return dict(entries[0]) if entries and agree else {}


def _wrong_activation(
    model: str,
    pretrained: str,
    known: dict[str, Any],
) -> str:
    plain = model.removesuffix("-quickgelu")
    if known.get("quick_gelu"):
        trained = "quick-GELU"
        right = f"{plain}-quickgelu"
    else:
        trained = "GELU"
        right = plain
    return f"{model}: the weights {pretrained} were trained with {trained}; the right model is {right}"


def _download(model: str, tag: str) -> CLIP:
    """A published CLIP through open_clip's cache."""
    if not open_clip.get_pretrained_cfg(model, tag):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ValueError(f"{model}: {tag} is neither a file nor one of its pretrained tags ({tags})")
    with torch.device("meta"):
        blank(model)  # refuses what cannot be built before its weights are fetched
    try:
        clip = open_clip.create_model(model, pretrained=tag)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{model}: the weights {tag} did not arrive: {str(error).splitlines()[0]}") from None
    return _finish(clip, model, clip.visual.preprocess_cfg)


def _read_checkpoint(clip: CLIP, path: str) -> None:
    """Read a local state dict; every tensor must be there and fit."""
    try:
        open_clip.load_checkpoint(clip, path, weights_only=True)
    except Exception as error:
        # torch, pickle and safetensors each have their own; all mean a bad file
        message = _one_line(error)
        if "TorchScript" in message:
            message = "a TorchScript archive; use `pretrained: openai`, or save its state_dict as safetensors"
        elif "Weights only load failed" in message:
            message = "it holds more than tensors, and nothing is unpickled here; save its state_dict alone"
        raise ValueError(f"{path}: not the weights of {model_name(clip)}: {message[:300]}") from None


def _finish(
    clip: CLIP,
    name: str,
    preprocess: dict[str, Any],
) -> CLIP:
    """What vopcore keeps on a CLIP."""
    clip.model_name = name
    clip.text_settings = model_config(name)["text_cfg"]
    clip.context_length = clip.text_settings.get("context_length", 77)
    clip.visual.preprocess_cfg = PREPROCESSING | dict(preprocess)
    towers(clip)
    return clip.eval()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
