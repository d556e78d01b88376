"""Cross-Modal Adapter: bottlenecks after each sub-layer, whose last channels both towers share.

Cross-Modal Adapter for text-video retrieval: https://arxiv.org/abs/2211.09623 (3.2, Eq. 4-7), as released:
`A(z) = z + [h Wu^T + bu, h Ws^T + bs]` with `h = act(z Wd^T + bd)`, inside the residual branch, no norm,
no scale. The paper uses it with `pooling: query_aware`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vopcore.clip import CLIP, Tower, towers
from vopcore.methods.base import require

STD = 0.01  # of all weights at the start: near the identity, not the identity


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)"""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "relu": F.relu,
}


class UpProjection(nn.Module):
    """Weight (channels, r) and bias (channels,) of an up-projection, or of the shared slice of two."""

    def __init__(
        self,
        tower: Tower,
        channels: int,
        reduction: int,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(small(tower.new(channels, reduction)))
        self.bias = nn.Parameter(nn.init.zeros_(tower.new(channels)))

    @property
    def matrix(self) -> Tensor:
        """Weight and bias side by side, (channels, r + 1)."""
        return torch.cat([self.weight, self.bias.unsqueeze(1)], dim=1)


class SharedAdapter(nn.Module):
    """One A_k. `parts` are the up-projections that fill the channels in order, the shared one last."""

    def __init__(
        self,
        tower: Tower,
        reduction: int,
        parts: list[UpProjection],
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.down_weight = nn.Parameter(small(tower.new(reduction, tower.width)))
        self.down_bias = nn.Parameter(nn.init.zeros_(tower.new(reduction)))
        self.up = nn.ModuleList(parts)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        """z [N, L, D], the output of a sub-layer -> [N, L, D]"""
        down = F.linear(z, self.down_weight, self.down_bias)
        hidden = self.dropout(self.activation(down))

        # The small matrices, not their large products.
        matrices = []
        for part in self.up:
            assert isinstance(part, UpProjection)
            matrices.append(part.matrix)
        up = torch.cat(matrices)
        summed = torch.addmm(
            z.flatten(0, -2),
            F.pad(hidden, (0, 1), value=1).flatten(0, -2),
            up.T,
        )
        return summed.view_as(z).to(z.dtype)


def small(weight: Tensor) -> Tensor:
    """As the release: a normal of std 0.01, cut at +-2 (200 standard deviations: never)."""
    return nn.init.normal_(weight, std=STD)


@dataclass(frozen=True, kw_only=True)
class CrossModalAdapter:
    """Adapters in both towers with a shared slice (Cross-Modal Adapter 3.2).

    reduction: r, channels of the bottleneck. shared: d_s, how many of the last channels come from weights
    that vision layer i and text layer i share; 0 is the plain adapter. Towers of different depth share in
    their first min(L_v, L_t) layers, counted from the input. dropout: after the activation.
    """

    reduction: int = 8
    shared: int = 16
    activation: Literal["quick_gelu", "gelu", "relu"] = "quick_gelu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require("reduction", self.reduction, self.reduction >= 1, "at least 1")
        require("shared", self.shared, self.shared >= 0, "at least 0")
        require(
            "activation",
            self.activation,
            self.activation in ACTIVATIONS,
            f"one of {', '.join(ACTIVATIONS)}",
        )
        require("dropout", self.dropout, 0 <= self.dropout < 1, "in 0..1, below 1")

    def attach(self, clip: CLIP, frames: int) -> None:
        """Put two adapters into each block, behind what open_clip does last in each residual branch."""
        vision, text, _ = towers(clip)
        width = min(vision.width, text.width)
        require(
            "shared",
            self.shared,
            self.shared <= width,
            f"at most {width}, the width of the narrower tower",
        )
        for i in range(max(vision.layers, text.layers)):
            here = [tower for tower in (vision, text) if i < tower.layers]
            for branch in ("attn", "mlp"):
                shared = (
                    UpProjection(text, self.shared, self.reduction)
                    if len(here) == 2 and self.shared
                    else None
                )
                for tower in here:
                    tower.add_behind(
                        tower.blocks[i],
                        branch,
                        self._adapter(tower, shared),
                    )

    def _adapter(self, tower: Tower, shared: UpProjection | None) -> SharedAdapter:
        own = tower.width - (self.shared if shared else 0)
        parts = [UpProjection(tower, own, self.reduction)] if own else []
        parts += [shared] if shared else []
        return SharedAdapter(
            tower,
            self.reduction,
            parts,
            self.activation,
            self.dropout,
        )
