"""Several processes that share the blocks of one ranking: each counts its own, sums make the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Block = TypeVar("Block")


def _alone(counts: Tensor) -> Tensor:
    return counts


@dataclass(frozen=True)
class Workers:
    """This process among those that rank together; all hold the same vectors."""

    rank: int = 0
    count: int = 1
    # the sum over all processes, on the CPU, of a CPU tensor
    add_up: Callable[[Tensor], Tensor] = _alone

    def share(self, blocks: Sequence[Block]) -> Sequence[Block]:
        """Every `count`-th block, beginning with this process's."""
        return blocks[self.rank :: self.count]
