"""A block of open_clip in training: the same numbers as open_clip's with less work.

Prompts are only looked at, so they are keys and values without queries or an MLP; of the vision tower's last
block only the class tokens go on; projections read x as it lies in memory, where nn.MultiheadAttention, given
the batch first, multiplies a transposed view row by row (27 % of a step on a CPU); quick-GELU keeps one
tensor for the backward pass instead of two. In eval mode a block without prompts is open_clip's, to the bit.

Under autocast (bf16) a step is bound by memory: norms read and write bf16, with their statistics in fp32
inside the kernel, the frozen MLP and projections are each one autograd function without passes that only
scale, join or cut, and patches are embedded by one product.
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vopcore.clip.autocast import (
    SLOPE,
    FrozenMLP,
    FrozenProjection,
    autocast_dtype,
    is_frozen,
)
from vopcore.clip.interface import AutogradContext
from vopcore.clip.onednn_linear import OneDNNLinear, linear


class TrainingBlock(ResidualAttentionBlock):  # type: ignore[misc]  # open_clip has no types
    """A block that `attend` computes in training."""


class BatchFirstAttention(nn.MultiheadAttention):
    """Self-attention over keys that are values too; weights and names are those it had."""

    def forward(  # type: ignore[override]  # open_clip asks for no more than this
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """query [N, L, D], key = value [N, K, D] -> [N, L, D]; additive masks, `key_padding_mask` [N, K],
        `attn_mask` [L, K] or [N * heads, L, K].
        """
        if not self.training:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask=key_padding_mask,
                need_weights=False,
                attn_mask=attn_mask,
            )

        heads = []
        for rows in self.project(query, key):
            by_head = rows.unflatten(-1, (self.num_heads, -1))
            heads.append(by_head.transpose(1, 2))
        q, k, v = heads

        # one mask that broadcasts to [N, heads, L, K]
        mask = attn_mask
        if key_padding_mask is not None:
            mask = key_padding_mask[:, None, None]
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (-1, self.num_heads))
        if mask is not None:
            mask = mask.to(q.dtype)

        attended = F.scaled_dot_product_attention(q, k, v, mask)
        joined = attended.transpose(1, 2).flatten(2)
        return self.out_proj(joined), None

    def project(self, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """Queries [N, L, D], keys and values [N, K, D]."""
        weight = self.in_proj_weight
        bias = self.in_proj_bias
        width = self.embed_dim
        dtype = autocast_dtype(query)
        if dtype is not None and is_frozen(weight, bias):
            # None: keys and values are of the same x, so one product makes all three
            other = None if query is key else key.to(dtype)
            return FrozenProjection.apply(
                query.to(dtype),
                other,
                weight.to(dtype),
                bias.to(dtype),
            )

        if query is key:
            projected = linear(query, weight, bias)
            return projected.chunk(3, dim=-1)

        # the first rows of the matrix make queries, the others keys and values
        queries = linear(query, weight[:width], bias[:width])
        projected = linear(key, weight[width:], bias[width:])
        keys, values = projected.chunk(2, dim=-1)
        return queries, keys, values


class _QuickGELUFunction(torch.autograd.Function):
    """x sigmoid(1.702 x) = silu(u) / 1.702 with u = 1.702 x, whose derivative by x is silu'(u)."""

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor) -> Tensor:
        u = 1.702 * x
        ctx.save_for_backward(u)
        return F.silu(u).div_(1.702)

    @staticmethod
    def backward(ctx: AutogradContext, gradient: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(gradient, *ctx.saved_tensors)


class OneTensorQuickGELU(QuickGELU):  # type: ignore[misc]  # open_clip has no types
    """Keeps one tensor for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return _QuickGELUFunction.apply(x) if self.training else super().forward(x)


class OneFunctionMLP(nn.Sequential):
    """`c_fc`, quick-GELU and `c_proj`; under autocast, where they are frozen, as one function."""

    c_fc: nn.Linear
    c_proj: nn.Linear

    # what FrozenMLP adds first, in the dtype of the product
    _scaled_bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]"""
        dtype = autocast_dtype(x)
        into = self.c_fc
        out = self.c_proj

        # a method may have put something else in their place
        is_plain = type(into) is OneDNNLinear and type(out) is OneDNNLinear
        is_fixed = is_plain and is_frozen(*self.parameters())
        if not self.training or dtype is None or not is_fixed:
            return super().forward(x)  # type: ignore[no-untyped-call]  # nn.Sequential has no types

        # scaled once, before it is rounded
        if self._scaled_bias is None or self._scaled_bias.device != x.device:
            bias = into.bias.detach().float()
            self._scaled_bias = (SLOPE * bias).to(dtype)
        weights = (
            into.weight.to(dtype),
            self._scaled_bias,
            out.weight.to(dtype),
            out.bias.to(dtype),
        )
        return FrozenMLP.apply(x.to(dtype), *weights)


class AutocastLayerNorm(LayerNorm):  # type: ignore[misc]  # open_clip has no types
    """Under autocast reads and writes x in its own dtype, without a copy in fp32 and one back."""

    # frozen weight and bias in the dtype of x
    _rounded: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> the same shape and dtype"""
        if not self.training or autocast_dtype(x) != x.dtype:
            return super().forward(x)
        weight, bias = self._affine(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(
                x,
                self.normalized_shape,
                weight,
                bias,
                self.eps,
            )

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias in the dtype of x; rounded once if they are frozen."""
        if not is_frozen(self.weight, self.bias):
            return self.weight.to(x.dtype), self.bias.to(x.dtype)

        # once more where the CLIP has moved to another device
        if self._rounded is None or self._rounded[0].device != x.device:
            weight = self.weight.detach().to(x.dtype)
            bias = self.bias.detach().to(x.dtype)
            self._rounded = (weight, bias)
        return self._rounded


class PatchEmbedding(nn.Conv2d):
    """Under autocast a product of patches and kernels, as they do not overlap.

    cuDNN's convolution of three channels in bf16 does without tensor cores: an eighth of a step on an H200.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, D, H / kernel, W / kernel]"""
        dtype = autocast_dtype(x)
        height, width = self.kernel_size
        divides = x.shape[-2] % height == 0 and x.shape[-1] % width == 0
        if not self.training or dtype is None or not divides:
            return super().forward(x)

        # [N, C, rows, height, columns, width] -> a row of pixels per patch, in the kernel's order
        by_column = x.to(dtype).unflatten(-1, (-1, width))
        by_patch = by_column.unflatten(-3, (-1, height))
        pixels = by_patch.permute(0, 2, 4, 1, 3, 5).flatten(3)
        kernels = self.weight.flatten(1)
        embedded = F.linear(pixels, kernels, self.bias)
        return embedded.permute(0, 3, 1, 2)


def patches_for_training(module: nn.Module) -> None:
    """Make a convolution of patches side by side a PatchEmbedding, in place; others are left as they are."""
    if type(module) is not nn.Conv2d:
        return
    is_whole = module.groups == 1 and module.dilation == (1, 1)
    is_side_by_side = module.stride == module.kernel_size and module.padding == (0, 0)
    if is_whole and is_side_by_side:
        module.__class__ = PatchEmbedding


def for_training(block: nn.Module) -> None:
    """Make `block` and its parts the classes of this file, in place: names, weights and the modules stay.

    Blocks of other classes are left as they are. The class is changed as torch's parametrize does.
    """
    if not isinstance(block, ResidualAttentionBlock):
        return
    block.__class__ = TrainingBlock
    for module in block.modules():
        if isinstance(module, QuickGELU):
            module.__class__ = OneTensorQuickGELU
        if type(module) is nn.MultiheadAttention:
            module.__class__ = BatchFirstAttention
        # that is an attention's last
        if type(module) in (nn.Linear, NonDynamicallyQuantizableLinear):
            module.__class__ = OneDNNLinear
    if type(block.mlp) is nn.Sequential and isinstance(block.mlp.gelu, QuickGELU):
        block.mlp.__class__ = OneFunctionMLP


def norm_for_training(module: nn.Module) -> None:
    """Make an open_clip LayerNorm a AutocastLayerNorm, in place; others are left as they are."""
    if type(module) is LayerNorm:
        module.__class__ = AutocastLayerNorm


def attend(
    block: ResidualAttentionBlock,
    x: Tensor,
    prompts: Tensor,
    attn_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    read: int | None = None,
) -> Tensor:
    """x [N, L, D] -> the block's output for x, or in training for its first `read` tokens.

    The keys are `prompts` [N, p, D], or [1, p, D] where all sequences have the same, and then x. Additive
    masks over those keys: `attn_mask` [L, p + L], or `key_padding_mask` [N, p + L], the same for all
    queries. The same numbers as of a block over `[prompts, x]`.
    """
    normed = block.ln_1(x)
    keys = normed
    if prompts.shape[1]:
        normed_prompts = block.ln_1(prompts).to(normed.dtype)
        of_each_sequence = normed_prompts.expand(len(x), -1, -1)
        keys = torch.cat([of_each_sequence, normed], dim=1)

    # of what nobody reads only keys and values are needed
    queries = normed
    if block.training and read is not None:
        queries = normed[:, :read]
        x = x[:, :read]

    masks = {}
    if attn_mask is not None:
        masks["attn_mask"] = attn_mask.to(normed.dtype)
    if key_padding_mask is not None:
        masks["key_padding_mask"] = key_padding_mask.to(normed.dtype)
    attended, _ = block.attn(
        queries,
        keys,
        keys,
        need_weights=False,
        **masks,
    )
    x = x + block.ls_1(attended)
    changed = block.mlp(block.ln_2(x))
    return x + block.ls_2(changed)
