"""Build a CLIP and its tokenizer, with or without weights; refuse weights meant for another activation."""

import json
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from vopcore.clip.towers import model_name, towers

TOKENS = 49408  # of CLIP's own byte-pair vocabulary
OPENAI = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


def load(model: str, pretrained: str | None = None) -> nn.Module:
    """An open_clip CLIP in fp32 and eval mode, on the CPU.

    model: a name open_clip knows (`ViT-B-32-quickgelu`), or the path of a model config of your own (`.json`).
    pretrained: one of open_clip's tags (`openai`; downloaded once), the path of a checkpoint
    (`.safetensors`, or `.pt` read with weights_only), or None for the random weights of the global seed.

    Raises ValueError for an unknown model, tag or file, weights that do not fit, weights trained with another
    activation, and a CLIP that `towers` refuses.
    """
    config = _config(model)
    if pretrained is None:
        return blank(model)
    known = _known_weights(model, pretrained)
    if known and known.get("quick_gelu", False) != config.get("quick_gelu", False):
        raise ValueError(_wrong_activation(model, pretrained, known))
    if not Path(pretrained).is_file():
        return _download(model, pretrained)
    clip = blank(model)
    _read_checkpoint(clip, pretrained)
    if known:
        clip.visual.preprocess_cfg |= {key: known[key] for key in ("mean", "std")}
    return clip


def blank(model: str) -> nn.Module:
    """The architecture alone, on torch's current default device (`with torch.device("meta")`: no memory)."""
    config = _config(model)
    preprocess = config.pop("preprocess_cfg", {})
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
    config["text_cfg"]["hf_model_pretrained"] = False  # weights come later, whole
    try:
        clip = kind(**config)
    except TypeError as error:
        raise ValueError(f"{model}: not a model config of open_clip: {error}") from None
    return _finish(clip, model, preprocess)


def tokenizer(model: str | nn.Module, words: int) -> Callable[[list[str]], Tensor]:
    """captions -> Int64 [N, words]: start, words, end, zeros. A long caption loses words, never its end.

    Raises ValueError if the model reads fewer words, or has another vocabulary.
    """
    if isinstance(model, str):
        name, config = model, _config(model)["text_cfg"]
        context, size = config.get("context_length", 77), config.get("vocab_size", TOKENS)
    else:
        name, context, size = model_name(model), model.context_length, model.vocab_size
    if not 2 < words <= context:
        raise ValueError(f"words: {words} is not between 3 and the {context} tokens that {name} reads")
    if size < TOKENS:
        raise ValueError(f"{name}: vocab_size is {size}, CLIP's tokenizer has {TOKENS} tokens")
    return open_clip.SimpleTokenizer(context_length=words)


def normalisation(clip: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation [3] of pixels in 0..1 that the CLIP was trained with; OpenAI's if unknown."""
    preprocess = OPENAI | dict(getattr(clip.visual, "preprocess_cfg", {}))
    return torch.tensor(preprocess["mean"]), torch.tensor(preprocess["std"])


def activation(clip: nn.Module) -> str:
    """`quick_gelu` or `gelu`: what stands in the frozen MLPs; log it with a run."""
    return "quick_gelu" if any(isinstance(module, QuickGELU) for module in clip.modules()) else "gelu"


def _config(model: str) -> dict[str, Any]:
    """The model config: `embed_dim`, `vision_cfg`, `text_cfg`, perhaps `quick_gelu`, `custom_text`."""
    if not model.endswith(".json"):
        config = open_clip.get_model_config(model)
        if config is None:
            near = ", ".join(get_close_matches(model, open_clip.list_models(), 5, 0))
            raise ValueError(f"{model}: open_clip has no such model; near it are {near}")
        return config
    try:
        config = json.loads(Path(model).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{model}: not a model config: {error}") from None
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - set(config):
        raise ValueError(f"{model}: the model config lacks {', '.join(sorted(missing))}")
    return config


def _known_weights(model: str, pretrained: str) -> dict[str, Any]:
    """open_clip's entry for a tag, or for a local copy of a file it publishes; empty if it knows neither.

    Tags are listed by architecture: `ViT-B-32` has those of `ViT-B-32-quickgelu` too.
    """
    plain, path = model.removesuffix("-quickgelu"), Path(pretrained)
    if not path.is_file():
        return open_clip.get_pretrained_cfg(model, pretrained) or open_clip.get_pretrained_cfg(
            plain, pretrained
        )
    for name, tag in open_clip.list_pretrained():
        entry = open_clip.get_pretrained_cfg(name, tag)
        repository = entry.get("hf_hub", "").strip("/").split("/")[-1]
        published = path.name == Path(entry.get("url", "")).name or (repository and repository in pretrained)
        if published and name.removesuffix("-quickgelu") == plain:
            return entry
    return {}


def _wrong_activation(model: str, pretrained: str, known: dict[str, Any]) -> str:
    plain = model.removesuffix("-quickgelu")
    trained, right = ("quick-GELU", f"{plain}-quickgelu") if known.get("quick_gelu") else ("GELU", plain)
    return f"{model}: the weights {pretrained} were trained with {trained}; the right model is {right}"


def _download(model: str, tag: str) -> nn.Module:
    """A published CLIP through open_clip's cache."""
    if not open_clip.get_pretrained_cfg(model, tag):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ValueError(f"{model}: {tag} is neither a file nor one of its pretrained tags ({tags})")
    with torch.device("meta"):
        blank(model)  # refuses what we cannot tune before its weights are fetched
    try:
        clip = open_clip.create_model(model, pretrained=tag)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{model}: the weights {tag} did not arrive: {str(error).splitlines()[0]}") from None
    return _finish(clip, model, clip.visual.preprocess_cfg)


def _read_checkpoint(clip: nn.Module, path: str) -> None:
    """Read a local state dict; every tensor must be there and fit."""
    try:
        open_clip.load_checkpoint(clip, path, weights_only=True)
    except Exception as error:  # torch, pickle and safetensors each have their own; all mean a bad file
        message = " ".join(str(error).split())
        if "TorchScript" in message:
            message = "a TorchScript archive; use `pretrained: openai`, or save its state_dict as safetensors"
        elif "Weights only load failed" in message:
            message = "it holds more than tensors, and nothing is unpickled here; save its state_dict alone"
        raise ValueError(f"{path}: not the weights of {clip.model_name}: {message[:300]}") from None


def _finish(clip: nn.Module, name: str, preprocess: dict[str, Any]) -> nn.Module:
    clip.model_name = name
    clip.visual.preprocess_cfg = OPENAI | dict(preprocess)
    towers(clip)
    return clip.eval()
