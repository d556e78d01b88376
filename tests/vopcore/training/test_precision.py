"""bf16: the numbers of autocast, close to those of fp32, with everything that is tuned in fp32."""

import pytest
import torch
import torch.nn.functional as F
from support.methods import FRAMES, batch, tiny_clip, tuned_clip

from vopcore.clip import share
from vopcore.methods import METHODS, load_tuned, save_tuned
from vopcore.retriever import Retriever
from vopcore.training.loss import contrastive

TUNED = [name for name in METHODS if name != "zero_shot"]


def data():
    pixels, tokens = batch(4)
    mask = torch.ones(4, FRAMES, dtype=torch.bool)
    mask[2, 2:] = False
    return pixels, mask, tokens


def step(retriever):
    """Loss and gradients of one batch."""
    pixels, mask, tokens = data()
    loss = contrastive(*retriever(pixels, mask, tokens), mask, retriever)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in retriever.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", TUNED)
def test_bf16_gradients_point_where_those_of_fp32_do_and_are_fp32_themselves(name):
    exact_loss, exact = step(Retriever(tuned_clip(name, stir=0.1)))
    loss, got = step(Retriever(tuned_clip(name, stir=0.1), precision="bf16"))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact_loss, rtol=0.02, atol=0.02)
    assert got.keys() == exact.keys()
    assert all(gradient.dtype == torch.float32 for gradient in got.values())
    whole = [torch.cat([g[key].flatten() for key in sorted(g)]) for g in (got, exact)]
    assert F.cosine_similarity(*whole, dim=0) > 0.98
    assert not torch.equal(*whole)


@pytest.mark.parametrize("name", ["vop_fc", "cross_modal_adapter", "lora", "bias"])
def test_frozen_weights_kept_in_bf16_give_bit_for_bit_what_autocast_gives_over_fp32(name):
    clip = tuned_clip(name, stir=0.1)
    plain = Retriever(share(clip))
    pixels, mask, tokens = data()
    plain.precision = "bf16"  # autocast over fp32 weights
    with torch.no_grad():
        wanted = plain(pixels, mask, tokens)
    with torch.no_grad():
        got = Retriever(clip, precision="bf16")(pixels, mask, tokens)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])
    kept = {n: p.dtype for n, p in clip.named_parameters()}
    assert kept["visual.conv1.weight"] == torch.bfloat16
    assert kept["token_embedding.weight"] == kept["visual.ln_pre.weight"] == torch.float32


def test_weights_tuned_in_bf16_load_on_the_clip_that_was_read(tmp_path):
    clip = tuned_clip("vop_p", stir=0.1)
    Retriever(clip, precision="bf16")
    save_tuned(tmp_path / "tuned", clip, "mean")
    loaded = load_tuned(tiny_clip(), tmp_path / "tuned")
    pixels, mask, _ = data()
    with torch.no_grad():
        again = Retriever(loaded, precision="bf16").video(pixels, mask)
        assert torch.equal(again, Retriever(clip, precision="bf16").video(pixels, mask))
