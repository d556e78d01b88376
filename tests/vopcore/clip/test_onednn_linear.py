"""Products with frozen matrices are torch's own, with the same gradients; tuned ones are left to torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vopcore.clip.onednn_linear import OneDNNLinear, linear

SIZES = st.integers(1, 9)


def leaf(*shape: int, tuned: bool = True) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=tuned)


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, SIZES, SIZES, st.booleans())
def test_values_and_gradient_are_those_of_torch(n, length, k, o, with_bias):
    x, weight, bias = leaf(n, length, k), leaf(o, k, tuned=False), leaf(o, tuned=False) if with_bias else None
    wanted = F.linear(x, weight, bias)
    out = linear(x, weight, bias)
    assert "Frozen" in type(out.grad_fn).__name__
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    pull = torch.randn(length, n, o).transpose(0, 1)  # not contiguous
    mine, theirs = (torch.autograd.grad(y, x, pull)[0] for y in (out, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_slice_that_is_not_contiguous_is_read_as_it_lies():
    x, weight = leaf(4, 6, 10).transpose(0, 1)[..., 1:9:2], leaf(8, 8, tuned=False)[::2, ::2]
    torch.testing.assert_close(linear(x, weight, None), F.linear(x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_what_is_tuned_gets_its_gradient(part):
    layer = OneDNNLinear(5, 3).requires_grad_(False)
    tuned = getattr(layer, part).requires_grad_(True)
    x = leaf(7, 5)
    (mine,) = torch.autograd.grad(layer(x).square().sum(), tuned)
    (theirs,) = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).square().sum(), tuned)
    assert torch.equal(mine, theirs)


def test_autocast_and_eval_mode_are_left_to_torch():
    layer = OneDNNLinear(8, 8).requires_grad_(False)
    x = leaf(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert torch.equal(layer.eval()(x), F.linear(x, layer.weight, layer.bias))
