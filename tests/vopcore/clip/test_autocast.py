"""Frozen layers under autocast: values and gradients of the plain layers, within bf16's rounding."""

import copy

import pytest
import torch
from open_clip.transformer import LayerNorm, ResidualAttentionBlock
from support.methods import tuned_clip
from torch import nn

from vopcore.clip.autocast import FrozenMLP, FrozenProjection
from vopcore.clip.open_clip_tower import causal_mask
from vopcore.clip.training_block import (
    PatchEmbedding,
    QuickGELU,
    attend,
    for_training,
    patches_for_training,
)

WIDTH, TOKENS, SEQUENCES = 32, 5, 3


def make_block(seed=0):
    torch.manual_seed(seed)
    block = ResidualAttentionBlock(WIDTH, 2, act_layer=QuickGELU, norm_layer=LayerNorm)
    for name, parameter in block.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    for_training(block)
    return block.requires_grad_(False)


def relative_error(value, exact):
    return float((value.double() - exact.double()).norm() / exact.double().norm())


def block_step(block, x, prompts, dtype, mask=None):
    """Output, and the gradients of x and of the prompts."""
    x = x.to(dtype).detach().requires_grad_()
    prompts = prompts.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = attend(block, x, prompts.to(dtype), mask)
    pull = torch.linspace(-1, 1, out.numel()).view(out.shape)
    (out.float() * pull).sum().backward()
    return out.detach(), x.grad, prompts.grad


@pytest.mark.parametrize("num_prompts", [0, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_a_block_under_autocast_has_the_values_and_gradients_of_fp32(num_prompts, shared):
    block = make_block().train()
    x = torch.randn(SEQUENCES, TOKENS, WIDTH)
    prompts = torch.randn(1 if shared else SEQUENCES, num_prompts, WIDTH)
    exact = block_step(block, x, prompts, torch.float32)
    rounded = block_step(block, x, prompts, torch.bfloat16)
    assert rounded[0].dtype == torch.bfloat16  # the residual stream is not raised on its way
    assert relative_error(rounded[0], exact[0]) < 0.01
    assert relative_error(rounded[1], exact[1]) < 0.02
    if num_prompts:
        assert relative_error(rounded[2], exact[2]) < 0.03


@pytest.mark.parametrize("bias", [True, False])
def test_patches_are_embedded_by_one_product_with_the_values_and_gradients_of_the_convolution(bias):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, WIDTH, kernel_size=(4, 2), stride=(4, 2), bias=bias)
    patches = copy.deepcopy(convolution)
    patches_for_training(patches)
    assert type(patches) is PatchEmbedding
    pixels = torch.randn(SEQUENCES, 3, 12, 8)
    pull = torch.randn(SEQUENCES, WIDTH, 3, 4)

    exact = convolution(pixels)
    assert torch.equal(patches(pixels), exact)  # without autocast it is the convolution
    with torch.autocast("cpu", torch.bfloat16):
        product = patches(pixels)
        assert torch.equal(patches.eval()(pixels), convolution(pixels))  # nor in eval mode
    assert product.dtype == torch.bfloat16
    assert product.shape == exact.shape
    assert relative_error(product, exact) < 0.01

    (exact * pull).sum().backward()
    (product.float() * pull).sum().backward()
    for ours, theirs in zip(patches.parameters(), convolution.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) < 0.02


@pytest.mark.parametrize(("stride", "padding"), [((2, 2), (0, 0)), ((4, 4), (1, 1))])
def test_a_convolution_whose_patches_overlap_or_are_padded_stays_one(stride, padding):
    convolution = nn.Conv2d(3, WIDTH, kernel_size=(4, 4), stride=stride, padding=padding)
    patches_for_training(convolution)
    assert type(convolution) is nn.Conv2d


def test_shared_prompts_are_worth_as_much_as_a_copy_for_each_sequence():
    block = make_block().train()
    x, prompts = torch.randn(SEQUENCES, TOKENS, WIDTH), torch.randn(1, 2, WIDTH)
    once = block_step(block, x, prompts, torch.float32)
    copies = block_step(block, x, prompts.expand(SEQUENCES, -1, -1), torch.float32)
    torch.testing.assert_close(once[0], copies[0])
    torch.testing.assert_close(once[2], copies[2].sum(0, keepdim=True))


def test_the_frozen_mlp_is_exact_in_double_precision():
    torch.manual_seed(1)
    into, out = nn.Linear(6, 10).double(), nn.Linear(10, 6).double()
    x = torch.randn(2, 3, 6, dtype=torch.double, requires_grad=True)
    weights = into.weight.detach(), 1.702 * into.bias.detach(), out.weight.detach(), out.bias.detach()
    hidden = into(x)
    wanted = out(hidden * torch.sigmoid(1.702 * hidden))
    torch.testing.assert_close(FrozenMLP.apply(x, *weights), wanted)
    assert torch.autograd.gradcheck(lambda x: FrozenMLP.apply(x, *weights), x)


@pytest.mark.parametrize("joint", [True, False])
def test_the_frozen_projection_is_exact_in_double_precision(joint):
    torch.manual_seed(2)
    weight, bias = torch.randn(18, 6, dtype=torch.double), torch.randn(18, dtype=torch.double)
    query = torch.randn(2, 3, 6, dtype=torch.double, requires_grad=True)
    key = None if joint else torch.randn(2, 5, 6, dtype=torch.double, requires_grad=True)
    q, k, v = FrozenProjection.apply(query, key, weight, bias)
    torch.testing.assert_close(q, query @ weight[:6].T + bias[:6])
    torch.testing.assert_close(k, (query if joint else key) @ weight[6:12].T + bias[6:12])
    torch.testing.assert_close(v, (query if joint else key) @ weight[12:].T + bias[12:])
    given = (query,) if joint else (query, key)
    assert torch.autograd.gradcheck(
        lambda *x: FrozenProjection.apply(*x, *([None] if joint else []), weight, bias), given
    )


def test_what_is_tuned_in_a_block_still_gets_its_gradient_under_autocast():
    clip = tuned_clip("full").train()
    block = clip.visual.transformer.resblocks[0]
    with torch.autocast("cpu", torch.bfloat16):
        block(torch.randn(2, 5, 48)).float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_a_causal_mask_that_was_made_in_inference_mode_serves_training_too():
    with torch.inference_mode():
        causal_mask(torch.zeros(1, 7, 4), prompts=3)
    mask = causal_mask(torch.zeros(1, 7, 4), prompts=3)
    x = torch.zeros(7, 10, requires_grad=True)
    (x * mask.exp()).sum().backward()
    seen = torch.ones(7, 7).tril()
    prompts = torch.ones(7, 3)
    prompts[0] = 0
    assert torch.equal(x.grad, torch.cat([prompts, seen], dim=1))
