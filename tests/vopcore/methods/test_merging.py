"""Patches that are merged under a method: TempMe's own merging, for less work, saved with the weights."""

import pytest
import torch
from support.methods import FRAMES, batch, method, tiny_clip
from torch.utils.flop_counter import FlopCounterMode

from vopcore.clip import blank, first_tuned_layer
from vopcore.methods import METHODS, load_tuned, save_tuned, tune
from vopcore.methods.tempme import FrameMerging
from vopcore.retriever import Retriever

MERGING = [
    "zero_shot",
    "full",
    "bias",
    "proj",
    "partial",
    "adapter_ffn",
    "cross_modal_adapter",
    "vop",
    "vop_p",
]
MERGING += ["coop", "vpt", "lora"]
OTHERS = [name for name in METHODS if name not in MERGING]


def merged(name, stir=0.0, merge=1):
    """A method of which each layer but the last merges a patch; `stir` moves its parameters from zero."""
    torch.manual_seed(0)
    clip = tune(tiny_clip(), method(name), FRAMES, merge)
    generator = torch.Generator().manual_seed(1)
    for parameter in clip.parameters():
        if parameter.requires_grad:
            parameter.data += stir * torch.randn(parameter.shape, generator=generator)
    return clip


@torch.no_grad()
def test_a_frozen_clip_that_merges_is_tempme_before_anything_is_learned_and_joined():
    """With one frame nothing is joined, and low-rank updates are zero at the start."""
    pixels, _ = batch(3, frames=1)
    for count in (1, 2):
        plain = Retriever(tune(tiny_clip(), METHODS["zero_shot"](), 1, count)).eval()
        tempme = Retriever(tune(tiny_clip(), method("tempme", frame_merges=count), 1)).eval()
        torch.testing.assert_close(plain.video(pixels), tempme.video(pixels), rtol=0, atol=1e-5)

    unmerged = Retriever(tune(tiny_clip(), METHODS["zero_shot"](), 1)).eval()
    assert (unmerged.video(pixels) - plain.video(pixels)).abs().max() > 1e-2


@pytest.mark.parametrize("name", MERGING)
def test_where_nothing_is_merged_a_method_computes_what_it_did(name):
    pixels, tokens = batch(2)
    clip = merged(name, stir=0.1)
    for module in clip.modules():
        if isinstance(module, FrameMerging):
            module.count = None
    with torch.no_grad():
        got = Retriever(clip).eval()(pixels, None, tokens)
        wanted = Retriever(merged(name, stir=0.1, merge=0)).eval()(pixels, None, tokens)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MERGING)
def test_training_and_searching_see_the_same_and_padding_and_neighbours_change_nothing(name):
    pixels, tokens = batch(3)
    mask = torch.ones(3, FRAMES, dtype=torch.bool)
    mask[1, 2:] = False
    clip = merged(name, stir=0.1)
    retriever = Retriever(clip)
    text, trained = retriever.train()(pixels, mask, tokens)
    if name != "zero_shot":
        (trained[mask].sum() + text.sum()).backward()
        gradients = [p.grad for p in clip.parameters() if p.requires_grad and p.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)

    with torch.no_grad():
        whole = retriever.eval().video(pixels, mask)
        torch.testing.assert_close(trained.detach()[mask], whole[mask], rtol=1e-4, atol=1e-5)
        alone = retriever.video(pixels[1:2], mask[1:2])
        torch.testing.assert_close(alone[:, :2], whole[1:2, :2], rtol=1e-4, atol=1e-5)
        pixels[1, 2:] = 255 - pixels[1, 2:]
        torch.testing.assert_close(retriever.video(pixels, mask)[mask], whole[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["zero_shot", "vop", "lora"])
def test_a_saved_method_merges_when_it_is_loaded(name, tmp_path):
    clip = merged(name, stir=0.1)
    save_tuned(tmp_path / "tuned.safetensors", clip, "mean")
    loaded = load_tuned(tiny_clip(), tmp_path / "tuned.safetensors")
    assert loaded.tuning.merge == 1
    pixels, _ = batch(2)
    with torch.no_grad():
        wanted = Retriever(clip).eval().video(pixels)
        torch.testing.assert_close(Retriever(loaded).eval().video(pixels), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_a_method_that_computes_attention_itself_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match=f"^merge: {name} computes the vision tower's attention itself"):
        tune(tiny_clip(), method(name), FRAMES, 1)


def test_no_layer_may_be_kept_of_a_tower_that_merges():
    assert first_tuned_layer(tune(tiny_clip(), method("partial"), FRAMES)) == 2
    assert first_tuned_layer(merged("partial")) == 0


def test_four_patches_less_in_each_layer_nearly_halve_what_a_frozen_clip_costs():
    counted = []
    for merge in (0, 4):
        with torch.device("meta"):
            clip = tune(blank("ViT-B-32-quickgelu"), METHODS["zero_shot"](), 12, merge)
            clip.requires_grad_(False)
            retriever = Retriever(clip)
            pixels = torch.zeros(1, 12, 3, 224, 224, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter:
            retriever.video(pixels)
        counted.append(counter.get_total_flops())
    assert 0.5 < counted[1] / counted[0] < 0.6
