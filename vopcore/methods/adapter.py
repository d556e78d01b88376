"""Bottleneck adapters in parallel to a sub-layer: VoP's baselines Adapter-ATTN and Adapter-FFN (paper 4.1).

Adapter-FFN has the form of AdaptFormer (https://arxiv.org/abs/2205.13535, Eq. 4):
`MLP(LN(x)) + s * relu(LN(x) W_down + b) W_up + b`; Adapter-ATTN is the same beside the self-attention.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vopcore.clip import CLIP, Tower, towers
from vopcore.methods.base import require


class Bottleneck(nn.Module):
    """`scale * up(relu(down(x)))`; zero at the start, because `up` is."""

    def __init__(
        self,
        tower: Tower,
        hidden: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.down_weight = nn.Parameter(nn.init.kaiming_uniform_(tower.new(hidden, tower.width), a=5**0.5))
        self.down_bias = nn.Parameter(nn.init.zeros_(tower.new(hidden)))
        self.up_weight = nn.Parameter(nn.init.zeros_(tower.new(tower.width, hidden)))
        self.up_bias = nn.Parameter(nn.init.zeros_(tower.new(tower.width)))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, D] -> [N, L, D]"""
        hidden = F.relu(F.linear(x, self.down_weight, self.down_bias))
        return self.scale * F.linear(hidden, self.up_weight, self.up_bias)


@dataclass(frozen=True, kw_only=True)
class AdapterFFN:
    """A bottleneck in parallel to each MLP of both towers (VoP 4.1, "Adapter-FFN").

    hidden: channels of the bottleneck. scale: s.
    """

    hidden: int = 64
    scale: float = 0.1

    def __post_init__(self) -> None:
        require("hidden", self.hidden, self.hidden >= 1, "at least 1")

    def attach(self, clip: CLIP, frames: int) -> None:
        """Put a bottleneck beside each MLP."""
        for tower in towers(clip)[:2]:
            for block in tower.blocks:
                tower.add_beside(
                    block,
                    "mlp",
                    Bottleneck(tower, self.hidden, self.scale),
                )


@dataclass(frozen=True, kw_only=True)
class AdapterAttn(AdapterFFN):
    """A bottleneck in parallel to each self-attention of both towers (VoP 4.1, "Adapter-ATTN")."""

    def attach(self, clip: CLIP, frames: int) -> None:
        """Put a bottleneck beside each self-attention."""
        for tower in towers(clip)[:2]:
            for block in tower.blocks:
                tower.add_beside(
                    block,
                    "attn",
                    Bottleneck(tower, self.hidden, self.scale),
                )
