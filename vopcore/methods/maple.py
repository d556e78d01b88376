"""MaPLe: deep text prompts, and vision prompts that are a linear function of them.

Multi-modal prompt learning: https://arxiv.org/abs/2210.03117 (3.2, Eq. 4-9).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vopcore.clip import CLIP, Prompts, Tower, towers
from vopcore.methods.base import fits_context, require
from vopcore.methods.prompt import carry


class Coupled(nn.Module):
    """The vision prompts of one layer: F_k(P_k), P_k the text prompts of that layer."""

    def __init__(
        self,
        vision: Tower,
        text: Tower,
        prompts: Prompts,
    ) -> None:
        super().__init__()
        self.source = prompts
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(vision.new(vision.width, text.width), a=5**0.5))
        self.bias = nn.Parameter(nn.init.zeros_(vision.new(vision.width)))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, D] -> prompts [N, count, D]"""
        return F.linear(self.source.tokens, self.weight, self.bias).expand(len(x), -1, -1)


@dataclass(frozen=True, kw_only=True)
class MaPLe:
    """Coupled prompts in both towers (MaPLe 3.2).

    prompts: per layer. depth: layers with fresh ones; those of the last of them are carried on.
    """

    prompts: int = 2
    depth: int = 9

    def __post_init__(self) -> None:
        require("prompts", self.prompts, self.prompts >= 0, "at least 0")
        require("depth", self.depth, self.depth >= 1, "at least 1")

    def attach(self, clip: CLIP, frames: int) -> None:
        """Wrap both towers."""
        vision, text, context_length = towers(clip)
        limit = min(vision.layers, text.layers)
        require(
            "depth",
            self.depth,
            self.depth <= limit,
            f"at most {limit}, the layers of the shallower tower",
        )
        fits_context("prompts", self.prompts, context_length)
        if self.prompts:
            own = [Prompts(text, self.prompts) for _ in range(self.depth)]
            carry(text, self.prompts, own)
            carry(
                vision,
                self.prompts,
                [Coupled(vision, text, prompts) for prompts in own],
            )
