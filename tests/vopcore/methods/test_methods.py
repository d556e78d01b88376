"""What every method must do, whatever it computes: tests over METHODS."""

import dataclasses

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from support.methods import CLASSES, FRAMES, TRAINED, batch, method, tiny_clip, tuned_clip

from vopcore.clip import blank, frozen_hash
from vopcore.methods import METHODS, Method, tune, tuned
from vopcore.retriever import Retriever
from vopcore.training.loss import contrastive
from vopcore.training.optim import build

ORDER_AWARE = {"vop_p", "vop_c", "vop_f", "vop_fp", "vop_fc", "tempme", "prompt_switch", "mv_adapter"}
RUNS_ANOTHER_TOWER = {"tempme", "prompt_switch", "dgl"}  # at the start too
VIT_B_32 = [
    ("zero_shot", {}, 0),
    ("full", {}, 151_277_313),
    ("bias", {}, 171_008),
    ("proj", {}, 655_360),
    ("partial", {}, 10_240_256),
    ("adapter_attn", {}, 1_982_976),
    ("adapter_ffn", {}, 1_982_976),
    ("vop", {}, 122_880),
    ("vop_p", {}, 528_384),
    ("vop_c", {}, 14_257_152),
    ("vop_f", {}, 132_096),
    ("vop_fp", {}, 402_432),
    ("vop_fc", {}, 14_278_656),
    ("cross_modal_adapter", {"reduction": 8, "shared": 16}, 519_168),
    ("cross_modal_adapter", {"reduction": 8, "shared": 8}, 520_896),
    ("cross_modal_adapter", {"reduction": 16, "shared": 16}, 1_008_000),
    ("cross_modal_adapter", {"reduction": 16, "shared": 64}, 988_416),
    ("cross_modal_adapter", {"reduction": 16, "shared": 512}, 805_632),
    ("cross_modal_adapter", {"reduction": 8, "shared": 0}, 522_624),
    ("maple", {}, 3_555_072),  # MaPLe's own 3.55 M
    ("coop", {}, 16 * 512),
    ("vpt", {}, 12 * 8 * 768),
    ("lora", {}, 12 * 2 * 2 * 8 * (768 + 512)),
    ("prompt_switch", {}, 12 * 12 * 768),
    ("dgl", {}, 4 * 12 * 768 + 393_728 + 4 * 768),  # without the 393,728 of prompts that nothing sees
    ("dgl", {"space": "transformer"}, 516_096 + 7_087_872 + 1_968_128 + 3_072),
    ("mv_adapter", {}, 12 * (150_912 + 7_248) + 12 * 118_272 + 8_512),
    ("tempme", {}, 294_912 + 196_608 + (12 + 6 + 3) * 768),
    ("vop_c", {"context": "lstm"}, 36_864 + 49_152 + 4_724_736 + 2_362_368),
    ("partial", {"layers": 12}, 12 * (7_087_872 + 3_152_384)),
    ("partial", {"layers": 0, "heads": True}, 657_921),  # CLIP4Clip with all of its layers frozen
]


def count(clip):
    return sum(parameter.numel() for parameter in tuned(clip).values())


@pytest.mark.parametrize(("name", "options", "parameters"), VIT_B_32)
def test_vit_b_32_has_the_count_of_the_papers(name, options, parameters):
    with torch.device("meta"):
        clip = blank("ViT-B-32-quickgelu")
    assert count(tune(clip, METHODS[name](**options), frames=12)) == parameters


@pytest.mark.parametrize("model", ["ViT-B-16", "ViT-L-14-quickgelu"])
@pytest.mark.parametrize("name", METHODS)
def test_other_vision_transformers_take_every_method(name, model):
    with torch.device("meta"):
        clip = tune(blank(model), METHODS[name](), frames=12)
    assert (count(clip) > 0) == (name != "zero_shot")


def test_cross_modal_adapter_shares_the_first_layers_of_towers_of_different_depth():
    with torch.device("meta"):
        clip = tune(blank("ViT-L-14-quickgelu"), METHODS["cross_modal_adapter"](), 12)
    v, t, r, s = 1024, 768, 8, 16  # widths; 24 and 12 layers
    shared = 2 * 12 * (v * r + r + (v - s) * (r + 1)) + 2 * 12 * (t * r + r + (t - s) * (r + 1) + s * (r + 1))
    assert count(clip) == shared + 2 * 12 * (v * r + r + v * (r + 1))


# what a method is


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_frozen_dataclass_that_a_config_can_build(name):
    made = TypeAdapter(METHODS[name]).validate_python({})
    assert isinstance(made, Method)
    assert type(made).__dataclass_params__.frozen
    assert type(made).__doc__.strip()
    assert METHODS[name](**dataclasses.asdict(made)) == made


# property 1: nothing added, nothing changed

NEUTRAL = {
    "vop": {"text_prompts": 0, "vision_prompts": 0},
    "vop_p": {"text_prompts": 0, "vision_prompts": 0, "specific": 0},
    "vop_c": {"text_prompts": 0, "vision_prompts": 0, "specific": 0},
    "vop_f": {"text_prompts": 0, "vision_prompts": 0, "spatial_layers": 3},
    "vop_fp": {"text_prompts": 0, "vision_prompts": 0, "specific": 0, "spatial_layers": 3},
    "vop_fc": {"text_prompts": 0, "vision_prompts": 0, "specific": 0, "spatial_layers": 3},
    "coop": {"prompts": 0},
    "vpt": {"prompts": 0},
    "maple": {"prompts": 0},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", [name for name in METHODS if name not in RUNS_ANOTHER_TOWER])
@torch.no_grad()
def test_an_empty_method_is_the_frozen_clip_to_the_bit(name, cls, dtype):
    plain = tiny_clip(cls).to(dtype).requires_grad_(False)
    clip = tune(tiny_clip(cls).to(dtype), method(name, **NEUTRAL.get(name, {})), FRAMES)
    for key, parameter in tuned(clip).items():
        if name == "cross_modal_adapter" and ".up." in key:
            parameter.zero_()
    clip.requires_grad_(False)  # torch has other kernels for weights that want gradients, 1e-6 apart
    retriever = Retriever(clip)
    pixels, tokens = batch()
    tokens = torch.nn.functional.pad(tokens, (0, clip.context_length - tokens.shape[1]))
    images = ((pixels - retriever.mean) / retriever.std).to(dtype).flatten(0, 1)
    text, video = retriever(pixels, None, tokens)
    assert text.dtype == video.dtype == torch.float32  # features are compared in full precision
    assert torch.equal(video.flatten(0, 1), plain.encode_image(images).float())
    assert torch.equal(text, plain.encode_text(tokens).float())


@pytest.mark.parametrize(("whole", "part"), [("vop_f", "vop"), ("vop_fp", "vop_p"), ("vop_fc", "vop_c")])
@torch.no_grad()
def test_joint_layers_after_the_last_layer_are_no_joint_layers(whole, part):
    pixels, tokens = batch()
    whole = Retriever(tuned_clip(whole, spatial_layers=3))(pixels, None, tokens)
    part = Retriever(tuned_clip(part))(pixels, None, tokens)
    assert all(torch.equal(x, y) for x, y in zip(whole, part, strict=True))


# property 2: who sees the order of frames


@pytest.mark.parametrize("pooling", ["mean", "query_aware"])
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_the_order_of_frames_matters_to_video_prompts_and_to_nothing_else(name, cls, pooling):
    retriever = Retriever(tuned_clip(name, cls, stir=0.3), pooling)
    pixels, tokens = batch()
    text = retriever.text(tokens)
    forwards, backwards = (retriever.similarity(text, retriever.video(x)) for x in (pixels, pixels.flip(1)))
    change = (forwards - backwards).abs().max()
    assert change > 1e-3 if name in ORDER_AWARE else change < 1e-5


# padding


@pytest.mark.parametrize("name", TRAINED)
def test_padding_changes_neither_the_loss_nor_a_gradient(name):
    clip = tuned_clip(name, stir=0.3)
    retriever = Retriever(clip, "query_aware").train()
    pixels, tokens = batch()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    noise = pixels.clone()
    noise[~mask] = batch(seed=7)[0][~mask]
    got = []
    for frames, words in ((pixels, 12), (noise, 16)):
        words = torch.nn.functional.pad(tokens, (0, words - tokens.shape[1]))
        loss = contrastive(*retriever(frames, mask, words), mask, retriever)
        got.append([loss, *torch.autograd.grad(loss, tuned(clip).values(), allow_unused=True)])
    for one, other in zip(*got, strict=True):
        assert one.norm() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=8, deadline=None)
@given(
    real=st.lists(st.booleans(), min_size=FRAMES, max_size=FRAMES).filter(any),
    others=st.lists(st.integers(1, FRAMES), max_size=3),
    place=st.integers(0, 3),
    noise=st.integers(10, 99),
)
@torch.no_grad()
def test_a_video_is_the_same_beside_any_others_and_whatever_its_padding_shows(
    name, real, others, place, noise
):
    retriever = Retriever(tuned_clip(name, stir=0.3)).eval()
    pixels, _ = batch(1)
    mask = torch.tensor([real])
    alone = retriever.video(pixels, mask)[mask]

    # its neighbours have as many frames as they like, at other places of the batch
    padded = pixels.clone()
    padded[~mask] = batch(1, seed=noise)[0][~mask]
    neighbours, _ = batch(len(others), seed=noise) if others else (pixels[:0], None)
    place = min(place, len(others))
    frames = torch.cat([neighbours[:place], padded, neighbours[place:]])
    masks = [torch.arange(FRAMES) < count for count in others]
    masks.insert(place, mask[0])
    together = retriever.video(frames, torch.stack(masks))[place]
    torch.testing.assert_close(together[mask[0]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", ["bilstm", "lstm", "transformer"])
@torch.no_grad()
def test_context_models_read_real_frames_only(context):
    retriever = Retriever(tuned_clip("vop_c", stir=0.3, context=context))
    pixels, _ = batch()
    mask = torch.tensor([[True, True, False, False]]).expand(3, -1)
    noise = torch.cat([pixels[:, :2], 255 - pixels[:, 2:]], dim=1)
    one, other = retriever.video(pixels, mask), retriever.video(noise, mask)
    torch.testing.assert_close(one[mask], other[mask], rtol=1e-5, atol=1e-6)
    if context != "transformer":  # whose positions are counted
        torch.testing.assert_close(one[mask], retriever.video(pixels[:, :2]).flatten(0, 1))


# property 4: frozen is frozen


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", TRAINED)
def test_twenty_steps_reduce_the_loss_and_change_nothing_frozen(name, cls):
    clip = tuned_clip(name, cls)
    retriever = Retriever(clip).train()
    clip.logit_scale.data.fill_(2.0)
    pixels, tokens = batch(6)
    mask = torch.ones(6, FRAMES, dtype=torch.bool)
    mask[0, 1:] = False
    optimizer = build(tuned(clip).items(), lr=3e-3, weight_decay=0.0)
    before, losses = frozen_hash(clip), []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16, enabled=cls is open_clip.CustomTextCLIP):
            outputs = retriever(pixels, mask, tokens)
        loss = contrastive(*outputs, mask, retriever)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0] - 0.02
    assert frozen_hash(clip) == before
    assert all(buffer.isfinite().all() for buffer in retriever.buffers() if buffer.dim() < 2)


# dropout


def test_dropout_works_in_training_only():
    retriever = Retriever(tuned_clip("cross_modal_adapter", stir=0.3, dropout=0.5))
    pixels, _ = batch()
    assert torch.equal(retriever.eval().video(pixels), retriever.video(pixels))
    assert not torch.equal(retriever.train().video(pixels), retriever.video(pixels))


# bad input

REFUSED = [
    ("vop", {"text_prompts": -1}, "text_prompts: -1 must be at least 0"),
    ("vop", {"text_prompts": 15}, "text_prompts: 15 must be at most 14"),
    ("vop", {"vision_layers": 4}, "vision_layers: 4 must be at most 3, the layers of the vision tower"),
    ("vop", {"text_layers": 3}, "text_layers: 3 must be at most 2, the layers of the text tower"),
    ("vop_p", {"specific": 9}, "specific: 9 must be in 0..3, vision_prompts"),
    ("vop_c", {"context": "gru"}, "context: gru must be one of bilstm, lstm, transformer"),
    ("vop_f", {"spatial_layers": 8}, "spatial_layers: 8 must be at most 3, the layers of the vision tower"),
    ("vop_fc", {"spatial_layers": -1}, "spatial_layers: -1 must be at least 0"),
    ("cross_modal_adapter", {"shared": 33}, "shared: 33 must be at most 32, the width of the narrower tower"),
    ("cross_modal_adapter", {"reduction": 0}, "reduction: 0 must be at least 1"),
    ("cross_modal_adapter", {"dropout": 1.0}, "dropout: 1.0 must be in 0..1, below 1"),
    ("cross_modal_adapter", {"activation": "tanh"}, "activation: tanh must be one of"),
    ("adapter_ffn", {"hidden": 0}, "hidden: 0 must be at least 1"),
    ("partial", {"layers": 3}, "layers: 3 must be at most 2, the layers of the shallower tower"),
    ("coop", {"prompts": 15}, "prompts: 15 must be at most 14"),
    ("vpt", {"layers": 4}, "layers: 4 must be at most 3"),
    ("maple", {"depth": 3}, "depth: 3 must be at most 2"),
    ("lora", {"targets": "qx"}, "targets: 'qx' must be letters of qkvo, each once"),
    ("lora", {"rank": 40}, "rank: 40 must be at most 32, the text width"),
    ("tempme", {"rank": 40}, "rank: 40 must be at most 32, the text width"),
    ("tempme", {"share": 0.6}, "share: 0.6 must be in 0..0.5"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_an_option_out_of_range_is_refused_by_its_name(name, options, message):
    with pytest.raises(ValueError, match="^" + message):
        tuned_clip(name, **options)


def test_a_clip_is_tuned_once():
    with pytest.raises(ValueError, match="this CLIP is tuned by vop;"):
        tune(tuned_clip("vop"), method("bias"), FRAMES)


@pytest.mark.parametrize("name", sorted(ORDER_AWARE - {"vop_c"}))
def test_another_number_of_frames_is_refused_where_frames_are_counted(name):
    with pytest.raises(
        ValueError, match=f"{name} was tuned with 4 frames per video and was given 3: sample 4"
    ):
        Retriever(tuned_clip(name)).video(batch(frames=3)[0])


@pytest.mark.parametrize("name", sorted(set(METHODS) - ORDER_AWARE | {"vop_c"}))
def test_another_number_of_frames_is_fine_elsewhere(name):
    assert Retriever(tuned_clip(name)).video(batch(frames=6)[0]).shape == (3, 6, 24)
