"""The two towers of a CLIP, as lists of blocks; which CLIPs we can tune, and why not the others."""

from dataclasses import dataclass
from typing import NamedTuple

import open_clip
import torch
from open_clip.transformer import CustomResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import nn


@dataclass(frozen=True)
class Tower:
    """One transformer of a CLIP. `blocks[i]`: [N, L, width] -> [N, L, width], batch first."""

    name: str
    transformer: nn.Module

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks in order; assign to an index to wrap one."""
        return self.transformer.resblocks

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.transformer.width

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def new(self, *shape: int) -> torch.Tensor:
        """An uninitialised tensor with the dtype and device of this tower's weights."""
        weight = next(self.transformer.parameters())
        return torch.empty(shape, dtype=weight.dtype, device=weight.device)


class Towers(NamedTuple):
    """Both towers of one CLIP, and the longest text it reads (tokens, start and end included)."""

    vision: Tower
    text: Tower
    context_length: int


def towers(clip: nn.Module) -> Towers:
    """The vision and the text tower of an open_clip `CLIP` or `CustomTextCLIP`.

    Raises ValueError, naming the model and the reason, if a tower is not an open_clip transformer read at its
    class token (vision) or at its end token under a causal mask (text).
    """
    if reason := _refusal(clip):
        message = f"{model_name(clip)}: {reason}"
        raise ValueError(f"{message}; choose a model with transformer towers, such as ViT-B-32-quickgelu")
    return Towers(
        Tower("vision", clip.visual.transformer),
        Tower("text", text_module(clip).transformer),
        clip.context_length,
    )


def model_name(clip: nn.Module) -> str:
    """What `load` was asked for; the class of a CLIP that open_clip itself has loaded."""
    return getattr(clip, "model_name", type(clip).__name__)


def text_module(clip: nn.Module) -> nn.Module:
    """What holds the text tower: the CLIP itself, or its `text` in a CustomTextCLIP."""
    return getattr(clip, "text", clip)


def pool_type(clip: nn.Module) -> str:
    """Where the text feature is read: `argmax` or `eos` in the towers we accept."""
    return getattr(clip, "text_pool_type", None) or text_module(clip).pool_type


def _refusal(clip: nn.Module) -> str | None:
    if not isinstance(clip, open_clip.CLIP | open_clip.CustomTextCLIP):
        return f"a {type(clip).__name__} is not an open_clip CLIP"
    visual, text = clip.visual, text_module(clip)
    if not isinstance(visual, VisionTransformer):
        return f"its vision tower is a {type(visual).__name__}, not a transformer of open_clip"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "its vision tower is not read at the class token"
    if text is not clip and not isinstance(text, TextTransformer):
        return f"its text tower is a {type(text).__name__}, not a transformer of open_clip"
    if text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
        return "its text tower is not causal"
    if pool_type(clip) not in ("argmax", "eos"):
        return "its text tower is not read at the end token"
    if any(isinstance(module, CustomResidualAttentionBlock) for module in clip.modules()):
        return "its blocks are open_clip's custom blocks"
    return None
