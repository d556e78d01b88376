"""Products with frozen matrices, on a CPU through oneDNN.

torch hands fp32 products to MKL; oneDNN, which it holds too and reaches only by this operator of its own
compiler, takes 5 to 13 % less time for those of a CLIP (AMD EPYC, tests/benchmarks/RESULTS.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vopcore.clip.interface import AutogradContext


class OneDNNLinear(nn.Linear):
    """In training a product with a frozen matrix; else, or with a tuned one, nn.Linear."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., O]"""
        return linear(x, self.weight, self.bias) if self.training else super().forward(x)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """x [..., K], weight [O, K], bias [O] -> [..., O]; as F.linear, but for rounding."""
    if _suits(x, weight, bias):
        return _Frozen.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def _suits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> bool:
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return frozen and plain and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")


class _Frozen(torch.autograd.Function):
    """x W^T + b, of which only x may ask for a gradient."""

    @staticmethod
    def forward(
        ctx: AutogradContext,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _onednn(gradient, weight.t(), None), None, None


def _onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(
        x,
        weight,
        bias,
        "none",
        [],
        "",
    )
