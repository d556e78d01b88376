"""What goes through the blocks of a tower: the tokens, and what travels beside them.

A block that a method puts into a tower is a `Block`: it takes `Tokens` and hands on `Tokens`, with other
values, more tokens (prompts) or fewer (merged ones). The blocks that open_clip, timm or transformers built
take plain tensors; `Tokens.run` calls both.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vopcore.clip.towers import Tower


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The sequences that enter a block, and how they are to be read.

    x: Float [N, L, D]. In a text tower N are captions. In a vision tower N = B * F: the frames of a video
        stand one after the other.
    tower: whose blocks they go through.
    prefix: the first tokens of each sequence that are no patches: class and register tokens, and prompts
        that are carried along. In a text tower the start token.
    frames: F, the sequences that make a video. A block that joins frames (one sequence per video) or merges
        some of them hands on a smaller number; features are repeated for the frames that were merged.
    real: Bool [B, F of the input], which frames are no padding; None: all of them.
    causal: a token sees itself and those before it.
    hidden: Bool [N, L], tokens that nobody looks at (padding); None: none.
    rope: rotary positions of the patches, [M, C] or one set per sequence [N, 1, M, C]; None: none.
    carried: Float [B, g, D], tokens of a whole video that a method hands from block to block; None: none.
    sizes: Float [N, L], how many tokens each one stands for once tokens were merged; None: one each.
    read: how many of the first tokens are read of the block's output; None: all. Only the last block of a
        tower that reads its class token is given a number, and only in training it may leave out the rest.
    """

    x: Tensor
    tower: "Tower"
    prefix: int
    frames: int = 1
    real: Tensor | None = None
    causal: bool = False
    hidden: Tensor | None = None
    rope: Tensor | None = None
    carried: Tensor | None = None
    sizes: Tensor | None = None
    read: int | None = None

    def with_x(self, x: Tensor) -> "Tokens":
        """The same with other values."""
        return replace(self, x=x)

    def run(self, block: nn.Module) -> "Tokens":
        """Through one block, a method's or the tower's own."""
        if isinstance(block, Block):
            return block(self)
        return self.with_x(self.tower.run_block(block, self))

    def insert(self, prompts: Tensor, hidden_prompts: Tensor | None = None) -> "Tokens":
        """With prompts [N or 1, p, D] behind the prefix, of which they become the last part; nobody looks at
        those that are hidden, Bool [N, p].
        """
        place = self.prefix
        count = prompts.shape[1]
        prompts = prompts.to(self.x.dtype).expand(len(self.x), -1, -1)
        x = torch.cat([self.x[:, :place], prompts, self.x[:, place:]], dim=1)

        hidden = self.hidden
        if hidden is None and hidden_prompts is not None:
            hidden = hidden_prompts.new_zeros(self.x.shape[:2])
        if hidden is not None:
            if hidden_prompts is None:
                hidden_prompts = hidden.new_zeros(len(hidden), count)
            hidden = torch.cat(
                [hidden[:, :place], hidden_prompts, hidden[:, place:]],
                dim=1,
            )

        sizes = self.sizes
        if sizes is not None:
            ones = sizes.new_ones(len(sizes), count)
            sizes = torch.cat([sizes[:, :place], ones, sizes[:, place:]], dim=1)
        return replace(
            self,
            x=x,
            prefix=place + count,
            hidden=hidden,
            sizes=sizes,
        )

    def remove(self, count: int) -> "Tokens":
        """Without the last `count` tokens of the prefix."""
        end = self.prefix
        start = end - count
        x = torch.cat([self.x[:, :start], self.x[:, end:]], dim=1)

        hidden = self.hidden
        if hidden is not None:
            hidden = torch.cat([hidden[:, :start], hidden[:, end:]], dim=1)

        sizes = self.sizes
        if sizes is not None:
            sizes = torch.cat([sizes[:, :start], sizes[:, end:]], dim=1)
        return replace(
            self,
            x=x,
            prefix=start,
            hidden=hidden,
            sizes=sizes,
        )

    def frame_summaries(self) -> Tensor:
        """One token for each frame, [B, F, D]: what VoP calls the CLS of a frame.

        It is the class token where the tower's feature is read from it. Elsewhere (no class token, average or
        attention pooling) nothing has taught a single token to stand for the frame, so it is the mean of the
        frame's patches.
        """
        if self.tower.reads_class_token:
            summaries = self.x[:, 0]
        elif self.sizes is None:
            summaries = self.x[:, self.prefix :].mean(dim=1)
        else:
            weights = self.sizes[:, self.prefix :].unsqueeze(-1)
            summaries = (weights * self.x[:, self.prefix :]).sum(dim=1) / weights.sum(dim=1)
        return summaries.unflatten(0, (-1, self.frames))


class Block(nn.Module):
    """A block in the place of another one, which it holds as `block`.

    Subclasses override `forward`. `across_frames`: whether a frame's tokens depend on the other frames of its
    video; what precedes the first such block may be computed once and kept. `shortens`: whether it hands on
    fewer tokens of a frame, of which the values alone do not say all.
    """

    across_frames = False
    shortens = False

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tokens) -> Tokens:
        """Through the block that is held."""
        return tokens.run(self.block)
