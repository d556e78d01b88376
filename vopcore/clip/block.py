"""A block of a tower in training: the same numbers as open_clip's with less work.

Prompts are only looked at, so they are keys and values without queries or an MLP; of the vision tower's last
block only the class tokens go on; projections read x as it lies in memory, where nn.MultiheadAttention, given
the batch first, multiplies a transposed view row by row (27 % of a step on a CPU); quick-GELU keeps one
tensor for the backward pass instead of two. In eval mode a block without prompts is open_clip's, to the bit.
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vopcore.clip.linear import LeanLinear, linear


class LeanBlock(ResidualAttentionBlock):
    """Takes a block's place in training; `read`: how many of its first tokens are read, None for all."""

    read: int | None = None

    def forward(
        self, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """q_x [N, L, D] -> [N, L, D], or [N, read, D] in training"""
        if not self.training:
            return super().forward(q_x, attn_mask=attn_mask)
        return attend(self, q_x, q_x[:, :0], attn_mask)


class LeanAttention(nn.MultiheadAttention):
    """Self-attention over keys that are values too; weights and names are those it had."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """query [N, L, D], key = value [N, K, D], additive masks [N, K] or [L, K] -> [N, L, D]"""
        if not self.training:
            masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
            return super().forward(query, key, value, need_weights=False, **masks)
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if query is key:
            parts = linear(query, weight, bias).chunk(3, dim=-1)
        else:
            asked = linear(query, weight[:width], bias[:width])
            parts = (asked, *linear(key, weight[width:], bias[width:]).chunk(2, dim=-1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mask = attn_mask if key_padding_mask is None else key_padding_mask[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, mask if mask is None else mask.to(q.dtype))
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


class _QuickGELU(torch.autograd.Function):
    """x sigmoid(1.702 x) = silu(u) / 1.702 with u = 1.702 x, whose derivative by x is silu'(u)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        u = 1.702 * x
        ctx.save_for_backward(u)
        return F.silu(u).div_(1.702)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(gradient, *ctx.saved_tensors)


class LeanQuickGELU(QuickGELU):
    """Keeps one tensor for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return _QuickGELU.apply(x) if self.training else super().forward(x)


def lean(block: nn.Module, read: int | None = None) -> None:
    """Make `block` one of these, in place: names, weights and the module itself stay.

    Blocks of other classes are left as they are. The class is changed as torch's parametrize does.
    """
    if not isinstance(block, ResidualAttentionBlock):
        return
    block.__class__, block.read = LeanBlock, read
    for module in block.modules():
        if isinstance(module, QuickGELU):
            module.__class__ = LeanQuickGELU
        if type(module) is nn.MultiheadAttention:
            module.__class__ = LeanAttention
        if type(module) in (nn.Linear, NonDynamicallyQuantizableLinear):  # that is an attention's last
            module.__class__ = LeanLinear


def attend(block: ResidualAttentionBlock, x: Tensor, prompts: Tensor, mask: Tensor | None = None) -> Tensor:
    """x [N, L, D] -> the block's output for x, or in training for what is read of it.

    Its keys are `prompts` [N, p, D] and then x; `mask` is an additive one over those keys, [L, p + L] or, the
    same for all queries, [N, p + L]. The same numbers as of a block over `[prompts, x]`.
    """
    count = getattr(block, "read", None) if block.training else None
    normed = block.ln_1(x)
    keys = torch.cat([block.ln_1(prompts).to(normed.dtype), normed], dim=1) if prompts.shape[1] else normed
    asks = normed if count is None else normed[:, :count]
    x = x[:, :count] + block.ls_1(block.attention(asks, keys, keys, attn_mask=mask))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
