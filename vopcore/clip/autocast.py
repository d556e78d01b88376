"""Frozen layers under autocast, each as one autograd function that moves fewer bytes.

In bf16 on a GPU a training step of a few prompts spends more time on reading and writing activations than on
products. These functions leave out the passes that only scale, join or cut.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vopcore.clip.interface import AutogradContext

SLOPE = 1.702  # quick-GELU(x) = x sigmoid(SLOPE x)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What products are computed in on the device of x; None without autocast."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def is_frozen(*parameters: Tensor) -> bool:
    """Nothing of these is tuned."""
    return not any(parameter.requires_grad for parameter in parameters)


class FrozenMLP(torch.autograd.Function):
    """W2 quick_gelu(W1 x + b1) + b2, of which only x asks for a gradient.

    quick_gelu(z) = silu(SLOPE z) / SLOPE. Both factors go into the products, where they cost nothing:
    u = SLOPE (W1 x + b1), y = (W2 silu(u)) / SLOPE + b2. In the gradient of x they cancel:
    W1^T (silu'(u) * W2^T g).
    """

    @staticmethod
    def forward(
        ctx: AutogradContext,
        x: Tensor,
        w1: Tensor,
        scaled_b1: Tensor,
        w2: Tensor,
        b2: Tensor,
    ) -> Tensor:
        """x [..., D], w1 [H, D], scaled_b1 = SLOPE b1 [H], w2 [D, H], b2 [D], of one dtype -> [..., D]"""
        rows = x.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            u = torch.addmm(
                scaled_b1,
                rows,
                w1.t(),
                alpha=SLOPE,
            )
            hidden = F.silu(u)
            y = torch.addmm(
                b2,
                hidden,
                w2.t(),
                alpha=1 / SLOPE,
            )

        # The hidden channels are not kept: silu's derivative is made from u.
        ctx.save_for_backward(u, w1, w2)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        u, w1, w2 = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        by_hidden = rows @ w2
        by_u = torch.ops.aten.silu_backward(by_hidden, u)
        by_x = (by_u @ w1).view(gradient.shape)
        return by_x, None, None, None, None


class FrozenProjection(torch.autograd.Function):
    """Queries, keys and values of an attention by a frozen matrix.

    Holds no activation for the backward pass. The gradient by the keys is summed inside the products, where
    torch would first join those by keys and values in a tensor of their own.
    """

    @staticmethod
    def forward(
        ctx: AutogradContext,
        query: Tensor,
        key: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """query [N, L, D], key [N, K, D] or None for the same as the query, weight [3 D, D], bias [3 D], of
        one dtype -> queries [N, L, D], keys and values [N, K, D]"""
        width = weight.shape[1]
        ctx.save_for_backward(weight)
        ctx.joint = key is None
        with torch.autocast(query.device.type, enabled=False):
            if key is None:
                # One product for all three.
                joint = F.linear(query, weight, bias)
                queries, keys, values = joint.chunk(3, dim=-1)
                return queries, keys, values

            queries = F.linear(query, weight[:width], bias[:width])
            pairs = F.linear(key, weight[width:], bias[width:])
            keys, values = pairs.chunk(2, dim=-1)
        return queries, keys, values

    @staticmethod
    def backward(
        ctx: AutogradContext,
        by_query: Tensor,
        by_key: Tensor,
        by_value: Tensor,
    ) -> tuple[Tensor, Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        for_query, for_key, for_value = weight.chunk(3)
        query_rows = by_query.flatten(0, -2)
        key_rows = by_key.flatten(0, -2)
        value_rows = by_value.flatten(0, -2)

        by_x = query_rows @ for_query
        if ctx.joint:
            # Keys and values are of the queries' own input: their gradients are added in place.
            by_x.addmm_(key_rows, for_key)
            by_x.addmm_(value_rows, for_value)
            return by_x.view(by_query.shape), None, None, None

        by_other = key_rows @ for_key
        by_other.addmm_(value_rows, for_value)
        query_gradient = by_x.view(by_query.shape)
        key_gradient = by_other.view(by_key.shape)
        return query_gradient, key_gradient, None, None
