"""Every method on every family of towers: open_clip's, timm's, Hugging Face's, and those without blocks."""

import copy

import pytest
import torch
from support.clip_families import FAMILIES, HUGGING_FACE, TIMM, WHOLE, WITH_BLOCKS, family_clip, inputs
from support.methods import OPTIONS
from torch import nn

from vopcore.clip import encode_from, encode_prefix, set_grad_checkpointing, share, towers
from vopcore.methods import METHODS, load_tuned, save_tuned, tune, tuned
from vopcore.retriever import Retriever
from vopcore.training.loss import contrastive

FRAMES = 4
SMALL = {
    name: options | {"spatial_layers": 1} if name.startswith("vop_f") else options
    for name, options in OPTIONS.items()
}
EIGHT = {
    "vop": {},
    "vop_p": {},
    "vop_c": {},
    "vop_f": {"spatial_layers": 1},
    "vop_fp": {"spatial_layers": 1},
    "vop_fc": {"spatial_layers": 1},
    "coop": {"prompts": 8},
    "vpt": {"prompts": 8},
    "maple": {"prompts": 8, "depth": 2},
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def clip(family, tmp_path, monkeypatch):
    return family_clip(tmp_path, family, monkeypatch)


def method(name, **changes):
    return METHODS[name](**SMALL.get(name, {}) | changes)


def stirred(clip, name, **changes):
    """Tuned by a method, with noise on the new parameters, so that none is zero."""
    tune(clip, method(name, **changes), FRAMES)
    torch.manual_seed(3)
    for parameter in tuned(clip).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return clip


def step(retriever, pixels, mask, ids):
    """The loss, and the gradient of everything that is tuned."""
    text, video = retriever(pixels, mask, ids)
    loss = contrastive(text, video, mask, retriever)
    parameters = list(tuned(retriever).values())
    return loss, torch.autograd.grad(loss, parameters, allow_unused=True)


# Nothing added, nothing changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_frozen_features_are_those_of_open_clip_to_the_bit(clip, dtype):
    clip = clip.to(dtype).requires_grad_(False)
    pixels, ids = inputs(clip, FRAMES)
    retriever = Retriever(clip)
    images = retriever._normalised(pixels).flatten(0, 1)
    options = {"normalize": False}
    wanted_text = clip.encode_text(ids, **options).float()
    wanted_video = clip.encode_image(images, **options).float()
    tune(clip, METHODS["zero_shot"](), FRAMES)
    text, video = Retriever(clip)(pixels, None, ids)
    assert torch.equal(video.flatten(0, 1), wanted_video)
    assert torch.equal(text, wanted_text)
    assert text.std(dim=0).max() > 0
    assert video.flatten(0, 1).std(dim=0).max() > 0


# Eight prompts


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("family", WITH_BLOCKS, indirect=True)
def test_each_of_eight_prompts_has_a_gradient(clip, name):
    tune(clip, METHODS[name](**EIGHT[name]), FRAMES)
    pixels, ids = inputs(clip, FRAMES)
    clip.logit_scale.data.fill_(2.0)
    _, gradients = step(Retriever(clip).train(), pixels, None, ids)
    for parameter, gradient in zip(tuned(clip), gradients, strict=True):
        assert gradient is not None, parameter
        if parameter.endswith(("tokens", "prompts.table")):
            assert (gradient.flatten(0, -2).norm(dim=-1) > 0).all(), parameter


# Counts


def closed_formulas(vision, text, frames, v_layers, t_layers):
    """Trainable parameters with 8 prompts of which 4 are specific, by widths and depths."""
    v, t = vision, text
    early, late = 1, v_layers - 1
    text_prompts = t_layers * 8 * t
    lstm = 2 * (4 * v * (v + v) + 8 * v) + 2 * v * 4 * v + 4 * v
    joint = late * 8 * v + frames * v
    adapter = {width: 2 * 64 * width + 64 + width for width in (v, t)}
    low_rank = {width: 2 * 2 * 8 * width for width in (v, t)}
    return {
        "vop": text_prompts + v_layers * 8 * v,
        "vop_p": text_prompts + v_layers * (4 + 4 * frames) * v,
        "vop_c": text_prompts + v_layers * 4 * v + lstm,
        "vop_f": text_prompts + early * 8 * v + joint,
        "vop_fp": text_prompts + early * (4 + 4 * frames) * v + joint,
        "vop_fc": text_prompts + early * 4 * v + lstm + joint,
        "adapter_attn": v_layers * adapter[v] + t_layers * adapter[t],
        "adapter_ffn": v_layers * adapter[v] + t_layers * adapter[t],
        "cross_modal_adapter": 2 * v_layers * (v * 8 + 8 + (v - 16) * 9)
        + 2 * t_layers * (t * 8 + 8 + (t - 16) * 9)
        + 2 * v_layers * 16 * 9,
        "coop": 8 * t,
        "vpt": v_layers * 8 * v,
        "lora": v_layers * low_rank[v] + t_layers * low_rank[t],
    }


@pytest.mark.parametrize("family", WITH_BLOCKS, indirect=True)
def test_counts_follow_from_widths_and_depths(clip):
    vision, text, _ = towers(clip)
    wanted = closed_formulas(vision.width, text.width, FRAMES, vision.layers, text.layers)
    counts = {}
    for name in wanted:
        tuned_copy = tune(share(clip), METHODS[name](**EIGHT.get(name, {})), FRAMES)
        counts[name] = sum(parameter.numel() for parameter in tuned(tuned_copy).values())
    assert counts == wanted


# Every method under every option


NO_BLOCKS = r"its vision tower, a \w+, has no blocks that a method can reach"
NEEDS = {
    "dgl": ("reads_class_token",),
    "mv_adapter": ("reads_class_token",),
    "tempme": ("reads_class_token", "has_halves"),
}
WITHOUT = {  # what the vision tower of a family lacks
    "reads_class_token": {"siglip", "vitamin", "pe_core", "clipa", "coca"},
    "has_halves": set(TIMM),
}


def refusal(name, family):
    """Why a method cannot tune a family; None if it can."""
    if family in WHOLE and name not in ("zero_shot", "full", "bias", "proj", "coop"):
        return NO_BLOCKS
    for need in NEEDS.get(name, ()):
        if family in WITHOUT[need]:
            return (
                f"^{name} (reads the class token of each frame|changes tokens inside the blocks of open_clip)"
            )
    return None


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_with_masks_and_recomputation_and_are_read_back(clip, family, name, tmp_path):
    plain = share(clip)
    if refusal(name, family):
        with pytest.raises(ValueError, match=refusal(name, family)):
            stirred(clip, name)
        return
    stirred(clip, name)
    clip.logit_scale.data.fill_(2.0)
    pixels, ids = inputs(clip, FRAMES)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    retriever = Retriever(clip, "query_aware").train()

    # Padding changes nothing.
    noise = pixels.clone()
    noise[~mask] = 255 - noise[~mask]
    text, video = retriever(pixels, mask, ids)
    loss = contrastive(text, video, mask, retriever)
    loss_with_noise = contrastive(*retriever(noise, mask, ids), mask, retriever)
    torch.testing.assert_close(loss_with_noise, loss, rtol=1e-4, atol=1e-5)

    if name != "zero_shot":
        loss, gradients = step(retriever, pixels, mask, ids)
        assert loss.isfinite()
        unused = [key for key, g in zip(tuned(clip), gradients, strict=True) if g is None]
        assert not unused
        set_grad_checkpointing(clip, True)
        again = step(retriever, pixels, mask, ids)
        set_grad_checkpointing(clip, False)
        torch.testing.assert_close(again, (loss, gradients), rtol=1e-4, atol=1e-5)

    if name != "full":
        clip.logit_scale.data.copy_(plain.logit_scale)
    save_tuned(tmp_path / "tuned.safetensors", clip, "query_aware")
    loaded = load_tuned(plain, tmp_path / "tuned.safetensors")
    with torch.no_grad():
        one = Retriever(clip).eval()(pixels, mask, ids)
        other = Retriever(loaded).eval()(pixels, mask, ids)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", WITH_BLOCKS, indirect=True)
def test_training_and_reading_have_the_same_features(clip):
    stirred(clip, "vop_fc")
    pixels, ids = inputs(clip, FRAMES)
    retriever = Retriever(clip)
    for one, other in zip(
        retriever.train()(pixels, None, ids), retriever.eval()(pixels, None, ids), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", WITH_BLOCKS, indirect=True)
@torch.no_grad()
def test_the_vision_tower_in_two_parts_is_the_vision_tower(clip):
    tune(clip, METHODS["proj"](), FRAMES)
    pixels, _ = inputs(clip, FRAMES)
    retriever = Retriever(clip).eval()
    whole = retriever.video(pixels)
    for layer in range(towers(clip).vision.layers + 1):
        prefix = encode_prefix(clip, retriever._normalised(pixels.flatten(0, 1)), layer)
        x = prefix.unflatten(0, pixels.shape[:2])
        torch.testing.assert_close(encode_from(clip, x, None, layer), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", WITH_BLOCKS, indirect=True)
def test_a_bf16_step_is_a_step(clip):
    stirred(clip, "vop")
    clip.logit_scale.data.fill_(2.0)
    pixels, ids = inputs(clip, FRAMES)
    exact, _ = step(Retriever(copy.deepcopy(clip)).train(), pixels, None, ids)
    rounded, gradients = step(Retriever(clip, precision="bf16").train(), pixels, None, ids)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("family", ["siglip", "clipa"], indirect=True)
@torch.no_grad()
def test_a_tower_that_reads_its_last_position_gets_its_padding(clip):
    _, ids = inputs(clip, FRAMES)
    tune(clip, METHODS["zero_shot"](), FRAMES)
    retriever = Retriever(clip)
    torch.testing.assert_close(retriever.train().text(ids), retriever.eval().text(ids))


def test_nothing_of_a_frozen_tower_drops_out_or_learns_statistics(clip):
    for module in clip.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    tune(clip, METHODS["zero_shot"](), FRAMES)
    pixels, ids = inputs(clip, FRAMES)
    before = {name: buffer.clone() for name, buffer in clip.named_buffers()}
    retriever = Retriever(clip).train()
    one, other = retriever(pixels, None, ids), retriever(pixels, None, ids)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(buffer, before[name]) for name, buffer in clip.named_buffers())


@pytest.mark.parametrize("family", HUGGING_FACE, indirect=True)
def test_recomputation_can_be_switched_off_in_a_tower_of_hugging_face(clip):
    set_grad_checkpointing(clip, True)
    assert clip.text.transformer.is_gradient_checkpointing
    set_grad_checkpointing(clip, False)
    assert not clip.text.transformer.is_gradient_checkpointing
