"""Run a block for the tokens whose output somebody reads: prompts are only looked at, and of the vision
tower's last block only the class tokens go on.

The latter in training mode only: in eval mode an untuned tower computes what open_clip does, to the bit.
"""

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn


class LastBlock(ResidualAttentionBlock):
    """The last vision block, whose output is read at its first `read` tokens: the others, of which it makes
    keys and values, have no output.
    """

    read = 1

    def forward(
        self, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """q_x [N, L, D] -> [N, read, D], or all of it in eval mode"""
        if not self.training:
            return super().forward(q_x, attn_mask=attn_mask)
        return attend(self, q_x, q_x[:, :0], attn_mask)


def read_class_tokens(block: nn.Module, count: int = 1) -> None:
    """Make of `block`, in place, one whose first `count` tokens are read; names and weights stay."""
    if isinstance(block, ResidualAttentionBlock):
        block.__class__ = LastBlock  # as torch's parametrize does: the module stays the object it is
        block.read = count


def attend(block: ResidualAttentionBlock, x: Tensor, prompts: Tensor, mask: Tensor | None = None) -> Tensor:
    """x [N, L, D] -> the block's output for x, or in training mode for what a LastBlock reads of it.

    Its keys are `prompts` [N, p, D] and then x; `mask` is an additive one over those keys. The same
    numbers as of a block over `[prompts, x]`, without the queries and the MLP of what nobody reads.
    """
    normed = block.ln_1(x)
    keys = torch.cat([block.ln_1(prompts).to(normed.dtype), normed], dim=1) if prompts.shape[1] else normed
    count = block.read if isinstance(block, LastBlock) and block.training else x.shape[1]
    x = x[:, :count] + block.ls_1(block.attention(normed[:, :count], keys, keys, attn_mask=mask))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
