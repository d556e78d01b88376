"""Wrappers around the blocks of a tower: what a tuning method puts into a frozen CLIP.

A wrapper is a module that takes a block's place and is called like it, so wrappers nest and open_clip's
own loop, checkpointing, pooling and projection stay as they are.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from vopcore.clip.autocast import autocast_dtype
from vopcore.clip.block import attend
from vopcore.clip.towers import Tower


class Block(nn.Module):
    """A block in the place of another one, which it holds as `block`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def get_weight_dtype(self) -> torch.dtype:
        """What open_clip asks of the first block of the text tower."""
        return self.block.get_weight_dtype()


class VideoBlock(Block):
    """A vision block that knows which frames make a video.

    open_clip hands every block an `attn_mask`, which the vision tower does not use. Where a method looks
    across frames every vision block is a VideoBlock and reads there which frames are real: Bool [B, F],
    or None for videos of `frames` real frames. So the mask is an argument, and a recomputation
    (checkpointing) sees the same.
    """


class PerFrame(VideoBlock):
    """A block that sees each frame on its own, between others that do not."""

    def forward(
        self, x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """x [B * F, L, D] -> the same shape; `attn_mask`, the mask of real frames, is not needed here."""
        return self.block(x)


class Prompts(nn.Module):
    """`count` prompt tokens, the same for every sequence; normal init, std 0.02, as VoP's release."""

    def __init__(self, tower: Tower, count: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(nn.init.normal_(tower.new(count, tower.width), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, D] -> prompts [N, count, D]."""
        return self.tokens.expand(len(x), -1, -1)


class Prompted(Block):
    """A block that reads prompts after its first token.

    Fresh `prompts` take the place of the `held` ones that the block before has kept; they leave the sequence
    after this block unless `keep`. Without `prompts` the held ones are read on.
    """

    def __init__(
        self, block: nn.Module, prompts: nn.Module | None, held: int = 0, keep: bool = False
    ) -> None:
        super().__init__(block)
        self.prompts, self.held, self.keep = prompts, held, keep

    def forward(
        self, x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """x [N, L, D] -> [N, L, D], longer by the prompts that are kept."""
        if self.prompts is None:
            prompts = x[:, 1 : 1 + self.held]
        elif isinstance(self.prompts, Prompts) and autocast_dtype(x) is not None:
            prompts = self.prompts.tokens[
                None
            ]  # the same for all: cast and normalised once, not per sequence
        else:
            prompts = self.prompts(x)
        x = torch.cat([x[:, :1], x[:, 1 + self.held :]], dim=1) if self.held else x
        return with_prompts(self.block, x, prompts, causal=attn_mask is not None, keep=self.keep)


def with_prompts(
    block: nn.Module, x: Tensor, prompts: Tensor, causal: bool = False, keep: bool = False
) -> Tensor:
    """Run `block` on `[x_0, prompts, x_1...]`; x [N, L, D], prompts [N or 1, p, D].

    The text towers that `towers` lets in are causal, so there the order of the longer sequence says who
    sees whom: a prompt is seen by whoever sees the token it stands before (VoP, Eq. 3). Prompts that are
    not kept have no output, so none is computed.
    """
    count = prompts.shape[1]
    if not count:
        return block(x, attn_mask=causal_mask(x) if causal else None)
    if not keep and isinstance(block, ResidualAttentionBlock):
        mask = causal_mask(x, count) if causal else None
        return attend(block, x, prompts.to(x.dtype), mask)
    prompts = prompts.to(x.dtype).expand(len(x), -1, -1)
    x = torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1)
    x = block(x, attn_mask=causal_mask(x) if causal else None)
    return x if keep else torch.cat([x[:, :1], x[:, 1 + count :]], dim=1)


def causal_mask(x: Tensor, prompts: int = 0) -> Tensor:
    """The additive mask [L, prompts + L] under which a token of x [N, L, D] sees itself and those before it,
    and all but the first see the prompts, which come first among the keys.

    Every block of a tower asks for the same one, so the last few are kept.
    """
    return kept_causal_mask(x.shape[1], prompts, x.dtype, x.device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # autograd may not keep what inference mode has made
def kept_causal_mask(length: int, prompts: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The mask of `causal_mask`; not to be written to."""
    mask = torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)
    if not prompts:
        return mask
    seen = mask.new_zeros(length, prompts)
    seen[0] = float("-inf")
    return torch.cat([seen, mask], dim=1)


def wrap(tower: Tower, make: Callable[[int, nn.Module], nn.Module], layers: range | None = None) -> None:
    """Put `make(i, block)` in the place of the blocks numbered `layers` (all, if None), counted from 0."""
    for i in range(tower.layers) if layers is None else layers:
        tower.blocks[i] = make(i, tower.blocks[i])
