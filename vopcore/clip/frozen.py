"""Freeze, thaw, share and fingerprint the weights of a CLIP."""

import copy
import dataclasses
import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vopcore.clip.interface import CLIP

DROP_RATES = (
    "p",
    "prob",
    "drop_prob",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "layerdrop",
)


def freeze(clip: CLIP) -> None:
    """Nothing of `clip` requires a gradient, and nothing drops out."""
    clip.eval().requires_grad_(False)
    stop_dropping(clip)


def stop_dropping(clip: CLIP) -> None:
    """Let no module of `clip` drop anything, in training mode either: patches, paths, layers or activations.

    open_clip, timm and transformers keep the rates in attributes of these names; a rate of 0 is the identity.
    """
    for module in clip.modules():
        for name in DROP_RATES:
            rate = getattr(module, name, None)
            # a module may keep something else under such a name
            if isinstance(rate, float):
                setattr(module, name, 0.0)


def keep_in_eval(clip: CLIP) -> None:
    """Batch norms use the statistics they were trained with, and do not change them, in training mode too."""
    for module in clip.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def thaw(parameters: Iterable[nn.Parameter]) -> None:
    """Let these be trained, in memory of their own: other CLIPs may `share` their old values."""
    for parameter in parameters:
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)


def keep_in_bf16(clip: CLIP) -> None:
    """Round the frozen weights of linear, convolution and attention layers to bf16, in place.

    What autocast would do again at each call: half the memory, and under autocast the same numbers. The
    parameters that are tuned, embeddings, norms and what `parametrize` holds stay as they are.
    """
    # the weights are known by their hash, which rounding changes
    if hasattr(clip, "tuning"):
        backbone = frozen_hash(clip)
        clip.tuning = dataclasses.replace(clip.tuning, backbone=backbone)

    for module in clip.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()


def share(clip: CLIP) -> CLIP:
    """A CLIP of its own modules over the very memory of `clip`'s weights, frozen.

    Wrapping or thawing the copy leaves `clip` as it is. Move `clip` to its device first: `.to(...)` ends
    the sharing.
    """
    # deepcopy takes what stands in its memo instead of copying it
    memo: dict[int, Tensor] = {}
    for parameter in clip.parameters():
        values = parameter.detach()
        memo[id(parameter)] = nn.Parameter(values, requires_grad=False)
    for buffer in clip.buffers():
        memo[id(buffer)] = buffer
    return copy.deepcopy(clip, memo).eval()


def empty_copy(clip: CLIP) -> CLIP:
    """A CLIP of the same shapes on the meta device: it takes no memory, whatever is put into it."""
    memo: dict[int, Tensor] = {}
    for parameter in clip.parameters():
        shape_alone = parameter.detach().to("meta")
        memo[id(parameter)] = nn.Parameter(shape_alone, requires_grad=False)
    for buffer in clip.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(clip, memo).eval()


def frozen_hash(clip: CLIP) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of the parameters that require no gradient."""
    digest = hashlib.sha256()
    for name, parameter in sorted(clip.named_parameters()):
        if not parameter.requires_grad:
            update(digest, name, parameter)
    return digest.hexdigest()


def update(
    digest: "hashlib._Hash",
    name: str,
    tensor: Tensor,
) -> None:
    """Feed one named tensor to a hash."""
    tensor = tensor.detach().cpu().contiguous()
    header = f"{name} {tensor.dtype} {list(tensor.shape)}\n"
    digest.update(header.encode())

    # as bytes, since NumPy has no bf16
    content = tensor.flatten().view(dtype=torch.uint8)
    digest.update(content.numpy().data)
