"""LoRA: low-rank updates of the attention's projections in both towers.

Low-rank adaptation: https://arxiv.org/abs/2106.09685 (4.1): `W + alpha / r * B A`, B zero at the start.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vopcore.clip import CLIP, Tower, towers
from vopcore.methods.base import read_as_changed, require


class LowRank(nn.Module):
    """Adds `scale * B_k A_k` to some square `parts` of a weight, numbered from its first rows."""

    def __init__(
        self,
        tower: Tower,
        parts: list[int],
        rank: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.parts = parts
        self.scale = scale
        num_parts = len(parts)
        width = tower.width
        self.a = nn.Parameter(tower.new(num_parts, rank, width))

        # Zero at the start, so that the weight begins as it was.
        zeros = nn.init.zeros_(tower.new(num_parts, width, rank))
        self.b = nn.Parameter(zeros)

        # Each matrix for itself: together they would be taken for a convolution, with another bound.
        for matrix in self.a.data:
            nn.init.kaiming_uniform_(matrix, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """weight [k * D, D] -> the same, updated"""
        changes = self.scale * self.b @ self.a
        width = weight.shape[1]
        squares = list(weight.split(width))
        for part, change in zip(self.parts, changes, strict=True):
            squares[part] = squares[part] + change
        return torch.cat(squares)


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank updates of self-attention in every layer of both towers (LoRA 4.2).

    rank: r. alpha: the update is scaled by alpha / rank. targets: which projections, of `q`, `k`, `v` and `o`
    (the output), as one word such as `qv`.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str = "qv"

    def __post_init__(self) -> None:
        require("rank", self.rank, self.rank >= 1, "at least 1")

        letters = set(self.targets)
        is_each_once = len(letters) == len(self.targets)
        is_known = letters <= set("qkvo")
        fits = bool(letters) and is_each_once and is_known
        require("targets", repr(self.targets), fits, "letters of qkvo, each once")

    def attach(self, clip: CLIP, frames: int) -> None:
        """Parametrize the projections."""
        for tower in towers(clip)[:2]:
            limit = f"at most {tower.width}, the {tower.name} width"
            require("rank", self.rank, self.rank <= tower.width, limit)

            for block in tower.blocks:
                self._attach_block(tower, block)

    def _attach_block(self, tower: Tower, block: nn.Module) -> None:
        """One update for each matrix, of the parts that are targets."""
        parts_of: dict[tuple[nn.Module, str], list[int]] = {}
        places = tower.projections(block)

        # The output last: queries, keys and values may be parts of one matrix.
        letters = sorted(self.targets, key="o".__eq__)
        for letter in letters:
            module, name, part = places[letter]
            parts_of.setdefault((module, name), []).append(part)

        scale = self.alpha / self.rank
        for (module, name), parts in parts_of.items():
            low_rank = LowRank(tower, parts, self.rank, scale)
            read_as_changed(module, name, low_rank)
