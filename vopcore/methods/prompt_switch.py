"""Prompt Switch: prompts that frames exchange in every layer.

https://arxiv.org/abs/2308.07648 (3.2, the prompt cube). The captioning head and the tuned CLIP of the paper
are left out: CLIP stays frozen.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vopcore.clip import CLIP, Block, Tokens, Tower, towers, wrap


class PromptCube(nn.Module):
    """As many prompts for each frame as there are frames, [F, F, D]; normal init, std 0.02 as VoP's."""

    def __init__(self, tower: Tower, frames: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(nn.init.normal_(tower.new(frames, frames, tower.width), std=0.02))

    def forward(self, videos: int) -> Tensor:
        """-> prompts [B * F, F, D]"""
        return self.tokens.repeat(videos, 1, 1)


class Switch(nn.Module):
    """Gives prompt j of frame i to frame j as its prompt i, in what the attention of a block reads."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.place = 0  # of the first prompt in a sequence

    def forward(self, x: Tensor) -> Tensor:
        """x [B * F, L, D] -> the same shape"""
        start = self.place
        end = start + self.frames
        cubes = x[:, start:end].unflatten(0, (-1, self.frames))
        switched = cubes.transpose(1, 2).flatten(0, 1)
        return torch.cat([x[:, :start], switched, x[:, end:]], dim=1)


class Switched(Block):
    """A block with a `Switch` before its attention.

    prompts: those that the first block brings in; None in the others. last: the prompts end here.
    """

    across_frames = True

    def __init__(
        self,
        block: nn.Module,
        switch: Switch,
        prompts: PromptCube | None,
        last: bool,
    ) -> None:
        super().__init__(block)
        self.switch = switch
        self.prompts = prompts
        self.last = last

    def forward(self, tokens: Tokens) -> Tokens:
        """The sequences are longer by F prompts between the first block and the last."""
        count = self.switch.frames
        if self.prompts is not None:
            prompts = self.prompts(len(tokens.x) // tokens.frames)
            tokens = without_padding(tokens.insert(prompts), count)

        self.switch.place = tokens.prefix - count
        tokens = tokens.run(self.block)
        if not self.last:
            return tokens
        return replace(tokens.remove(count), hidden=None)


def without_padding(tokens: Tokens, count: int) -> Tokens:
    """With the prompts, the last `count` tokens of the prefix, hidden that come from padding frames: behind
    the switch these are in the same place of every frame.
    """
    if tokens.real is None:
        return tokens
    start = tokens.prefix - count
    hidden = torch.zeros(tokens.x.shape[:2], dtype=torch.bool, device=tokens.x.device)
    hidden[:, start : tokens.prefix] = ~tokens.real.repeat_interleave(tokens.frames, dim=0)
    return replace(tokens, hidden=hidden)


@dataclass(frozen=True, kw_only=True)
class PromptSwitch:
    """A cube of prompts, F for each of F frames, carried through the vision tower; in every layer the
    attention of frame i reads prompt i of all frames (Prompt Switch 3.2).
    """

    fixed_frames: ClassVar[bool] = True

    def attach(self, clip: CLIP, frames: int) -> None:
        """Wrap the vision blocks."""
        vision = towers(clip).vision
        last = vision.layers - 1

        def make(i: int, block: nn.Module) -> Switched:
            switch = Switch(frames)
            vision.add_before_attention(block, switch)
            prompts = PromptCube(vision, frames) if i == 0 else None
            return Switched(block, switch, prompts, last=i == last)

        wrap(vision, make)
