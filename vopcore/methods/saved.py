"""Tuned weights in a file of their own: safetensors, with the method and its settings in the metadata.

Nothing is unpickled. Two hashes are kept: of the tuned tensors, so that a damaged file is noticed, and of
the frozen ones, so that weights tuned on another CLIP are.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vopcore.clip import (
    CLIP,
    activation,
    empty_copy,
    frozen_hash,
    model_name,
    share,
    thaw,
    tokenizer_name,
)
from vopcore.clip.frozen import update
from vopcore.methods.attach import tune, tuned
from vopcore.methods.base import Method
from vopcore.methods.hub import weights_file

FORMAT = "vopcore 1"
POOLINGS = ("mean", "query_aware")
SETTINGS = {  # what a file says of itself, and what each is
    "method": str,
    "options": dict,
    "frames": int,
    "pooling": str,
    "model": str,
    "activation": str,
    "backbone": str,
    "tensors": str,
}


def save_tuned(
    path: str | os.PathLike[str],
    clip: CLIP,
    pooling: str,
) -> None:
    """Write `tuned(clip)` and how to use it; `path` is there whole or not at all."""
    tensors = {}
    for name, parameter in tuned(clip).items():
        tensors[name] = parameter.detach().cpu().contiguous()

    # weights rounded to bf16 have another hash than those the CLIP was loaded with, which was kept
    tuning = clip.tuning
    backbone = tuning.backbone or frozen_hash(clip)
    settings = {
        "method": tuning.name,
        "options": dataclasses.asdict(tuning.method),
        "frames": tuning.frames,
        "pooling": pooling,
        "model": model_name(clip),
        "tokenizer": tokenizer_name(clip),
        "activation": activation(clip),
        "backbone": backbone,
        "tensors": tensors_hash(tensors),
    }
    if tuning.merge:
        settings["merge"] = tuning.merge

    part = Path(f"{path}.part")
    metadata = {"format": FORMAT, "settings": json.dumps(settings)}
    save_file(tensors, part, metadata)
    part.replace(path)


def load_tuned(clip: CLIP, path: str | os.PathLike[str]) -> CLIP:
    """A CLIP tuned as the file says, over the memory of `clip`'s frozen weights; `clip` itself stays as
    it is.

    path: a file of `save_tuned`, or `hub:ORG/NAME` of Hugging Face's hub, `@REVISION` behind it.

    Call it several times for several tuned CLIPs on one backbone, after the backbone is on its device. Raises
    ValueError, one line, for a file that is damaged, belongs to another CLIP, or names an unknown method
    or option.
    """
    copy, settings = attach_tuned(clip, path)
    if frozen_hash(copy) != settings["backbone"]:
        raise ValueError(f"{path}: tuned on other weights of {settings['model']} than those of this CLIP")
    return copy


def attach_tuned(
    clip: CLIP,
    path: str | os.PathLike[str],
) -> tuple[CLIP, dict[str, Any]]:
    """`load_tuned` without the look at every frozen weight, and the settings of the file.

    `path` may be `hub:ORG/NAME`, or `hub:ORG/NAME@REVISION`.
    For a CLIP of which one tower was read: the caller compares `settings["backbone"]` with what it knows.
    """
    settings, tensors = read(weights_file(path))
    try:
        method = _method(settings)
        frames = settings["frames"]
        merge = settings.get("merge", 0)

        # A file may ask for more than there is memory: shapes are compared where they cost none.
        empty = _tuned_copy(
            empty_copy(clip),
            method,
            frames,
            merge,
            tensors,
        )
        check_tensors(empty, tensors)

        copy = _tuned_copy(
            share(clip),
            method,
            frames,
            merge,
            tensors,
        )
        assign(copy, tensors)
    except (ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{path}: {message}") from None

    # shapes agree all the same, so nothing else would notice
    given = activation(clip)
    if given != settings["activation"]:
        needed = f"tuned on {settings['model']} with {settings['activation']}"
        raise ValueError(f"{path}: {needed}, this CLIP has {given}")

    # files of older versions do not say which tokenizer
    given = tokenizer_name(clip)
    if settings.get("tokenizer", given) != given:
        needed = f"tuned with the tokenizer {settings['tokenizer']}"
        raise ValueError(f"{path}: {needed}, this CLIP has {given}")

    copy.tuning = dataclasses.replace(copy.tuning, pooling=settings["pooling"])
    return copy, settings


def _tuned_copy(
    copy: CLIP,
    method: Method,
    frames: int,
    merge: int,
    tensors: Mapping[str, Tensor],
) -> CLIP:
    copy = tune(copy, method, frames, merge)

    # learnt beside the method, or part of it
    if "logit_scale" in tensors:
        thaw([copy.logit_scale])
    return copy


def assign(clip: CLIP, tensors: Mapping[str, Tensor]) -> None:
    """Give the tuned parameters these values (`tuned(clip)` of an equally tuned CLIP).

    Raises ValueError naming the tensor and both shapes, unless names, shapes and dtypes agree.
    """
    check_tensors(clip, tensors)
    for name, parameter in tuned(clip).items():
        tensor = tensors[name].to(parameter.device)
        parameter.data = tensor.clone()


def check_tensors(clip: CLIP, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless these are the tuned parameters of `clip` by name, shape and dtype."""
    parameters = tuned(clip)
    for name in [*parameters, *tensors]:
        expected = _kind(parameters.get(name))
        given = _kind(tensors.get(name))
        if given != expected:
            raise ValueError(f"tensor {name}: the file has {given}, this CLIP {expected}")


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors of a file of tuned weights, checked against its own hash."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            settings = json.loads(metadata.get("settings", "null"))

            # a safe_open has keys() and cannot be iterated
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{path}: not a whole file of tuned weights: {message}") from None

    if not isinstance(settings, dict):
        raise ValueError(f"{path}: safetensors without vopcore's settings: not saved by save_tuned")
    for name, kind in SETTINGS.items():
        value = settings.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{path}: its setting {name} is {str(value)[:50]!r}, not a {kind.__name__}")

    pooling = settings["pooling"]
    if pooling not in POOLINGS:
        raise ValueError(f"{path}: its pooling {pooling[:50]!r} is none of {', '.join(POOLINGS)}")
    if tensors_hash(tensors) != settings["tensors"]:
        raise ValueError(f"{path}: the tensors are not those that were saved")
    return settings, tensors


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        update(digest, name, tensor)
    return digest.hexdigest()


def _method(settings: dict[str, Any]) -> Method:
    from vopcore.methods import METHODS  # which imports this file

    name = settings["method"]
    options = settings["options"]
    if name not in METHODS:
        raise ValueError(f"method {name} is unknown; known are {', '.join(METHODS)}")
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    unknown = set(options) - fields
    if unknown:
        raise ValueError(f"method {name} has no option {', '.join(sorted(unknown))}")
    try:
        return METHODS[name](**options)
    except TypeError:
        raise ValueError(f"method {name} takes no such options: {str(options)[:100]}") from None


def _kind(tensor: Tensor | None) -> str:
    """`float32 [8, 512]`"""
    if tensor is None:
        return "none"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {list(tensor.shape)}"
