"""Prompts in one tower, baselines of the Cross-Modal Adapter paper (4.1): CoOp for text, VPT-deep for vision.

CoOp: https://arxiv.org/abs/2109.01134. VPT: https://arxiv.org/abs/2203.12119.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from vopcore.clip import CLIP, Prompted, Prompts, Tower, towers, wrap
from vopcore.methods.base import first_layers, fits_context, require


def prompt(
    tower: Tower,
    count: int,
    layers: range,
) -> None:
    """Give each of these layers `count` prompts of its own, gone again before the next layer."""
    if count:
        wrap(tower, lambda i, block: Prompted(block, Prompts(tower, count)), layers)


def carry(
    tower: Tower,
    count: int,
    prompts: Sequence[nn.Module],
) -> None:
    """Give the first layers these `prompts`, one each; those of the last of them stay to the tower's end."""
    deep = len(prompts)

    def make(i: int, block: nn.Module) -> Prompted:
        keep = deep - 1 <= i < tower.layers - 1
        return Prompted(
            block,
            prompts[i] if i < deep else None,
            held=count if i >= deep else 0,
            keep=keep,
        )

    wrap(tower, make)


@dataclass(frozen=True, kw_only=True)
class CoOp:
    """Prompts at the input of the text tower, carried through all layers (CoOp 3.2, a unified context).

    As everywhere here they stand behind the start token and take no word's position.
    """

    prompts: int = 16

    def __post_init__(self) -> None:
        require("prompts", self.prompts, self.prompts >= 0, "at least 0")

    def attach(self, clip: CLIP, frames: int) -> None:
        """Wrap the text tower."""
        _, text, context_length = towers(clip)
        fits_context("prompts", self.prompts, context_length)
        if self.prompts:
            carry(text, self.prompts, [Prompts(text, self.prompts)])


@dataclass(frozen=True, kw_only=True)
class VPT:
    """Fresh prompts at each of the first `layers` layers of the vision tower (VPT 3.2, deep); None is all."""

    prompts: int = 8
    layers: int | None = None

    def __post_init__(self) -> None:
        require("prompts", self.prompts, self.prompts >= 0, "at least 0")
        require(
            "layers",
            self.layers,
            self.layers is None or self.layers >= 0,
            "at least 0",
        )

    def attach(self, clip: CLIP, frames: int) -> None:
        """Wrap the vision tower."""
        vision = towers(clip).vision
        prompt(vision, self.prompts, first_layers("layers", self.layers, vision))
