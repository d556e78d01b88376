"""Tuned weights in a file and back; several on one backbone; files that are damaged or belong elsewhere."""

import json
import resource

import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.methods import FRAMES, batch, tiny_clip, tuned_clip

from vopcore.clip import frozen_hash, share
from vopcore.methods import METHODS, assign, load_tuned, save_tuned, tuned
from vopcore.retriever import Retriever

CLASSES = [open_clip.CLIP, open_clip.CustomTextCLIP]


@torch.no_grad()
def outputs(clip, pooling=None):
    pixels, tokens = batch()
    retriever = Retriever(clip, pooling)
    return retriever.similarity(retriever.text(tokens), retriever.video(pixels))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", METHODS)
def test_saved_weights_give_the_same_similarities_on_a_plain_clip(tmp_path, name, cls):
    clip = tuned_clip(name, cls, stir=0.3)
    save_tuned(tmp_path / "tuned.safetensors", clip, "query_aware")
    loaded = load_tuned(tiny_clip(cls), tmp_path / "tuned.safetensors")
    assert torch.equal(outputs(loaded), outputs(clip, "query_aware"))
    assert loaded.tuning.pooling == "query_aware"
    assert (loaded.tuning.name, loaded.tuning.method, loaded.tuning.frames) == (
        name,
        clip.tuning.method,
        FRAMES,
    )
    assert [p.name for p in tmp_path.iterdir()] == ["tuned.safetensors"]


def test_the_file_holds_the_tuned_tensors_and_nothing_else(tmp_path):
    clip = tuned_clip("vop_f")
    save_tuned(tmp_path / "t", clip, "mean")
    saved = load_file(tmp_path / "t")
    assert saved.keys() == tuned(clip).keys()
    assert all(torch.equal(saved[name], p) for name, p in tuned(clip).items())
    with safe_open(tmp_path / "t", "pt") as file:
        settings = json.loads(file.metadata()["settings"])
    assert settings["method"] == "vop_f"
    assert settings["options"]["spatial_layers"] == 1
    assert settings["frames"] == FRAMES


def test_a_learnt_logit_scale_travels_with_the_weights(tmp_path):
    clip = tuned_clip("vop")
    Retriever(clip, learn_scale=True)
    clip.logit_scale.data.fill_(1.5)
    save_tuned(tmp_path / "t", clip, "mean")
    plain = tiny_clip()
    assert load_tuned(plain, tmp_path / "t").logit_scale == 1.5
    assert plain.logit_scale != 1.5


def test_many_tuned_clips_on_one_backbone_are_isolated_and_share_its_memory(tmp_path):
    names = ["vop_fc", "full", "bias", "cross_modal_adapter", "lora", "vop"]
    plain = tiny_clip()
    before, zero_shot = frozen_hash(share(plain)), outputs(plain)
    alone = {}
    for name in names:
        clip = tuned_clip(name, stir=0.3)
        save_tuned(tmp_path / name, clip, "mean")
        alone[name] = outputs(clip)
    together = {name: load_tuned(plain, tmp_path / name) for name in names}
    for name in [*names, *reversed(names)]:
        assert torch.equal(outputs(together[name]), alone[name]), name
    assert torch.equal(outputs(plain), zero_shot)
    assert frozen_hash(share(plain)) == before
    backbone = {p.data_ptr() for p in plain.parameters()}
    for clip in together.values():
        assert all((p.data_ptr() in backbone) != p.requires_grad for p in clip.parameters() if p.numel())


def test_training_one_of_them_leaves_the_others_alone(tmp_path):
    plain = tiny_clip()
    for name in ("full", "vop"):
        save_tuned(tmp_path / name, tuned_clip(name), "mean")
    one, other = (load_tuned(plain, tmp_path / name) for name in ("full", "vop"))
    before, zero_shot = outputs(other), outputs(plain)
    for parameter in tuned(one).values():
        parameter.data.mul_(1.1)
    assert torch.equal(outputs(other), before)
    assert torch.equal(outputs(plain), zero_shot)


# files that are refused


@pytest.fixture
def path(tmp_path):
    save_tuned(tmp_path / "t.safetensors", tuned_clip("vop"), "mean")
    return tmp_path / "t.safetensors"


def refused(path, message, clip=None):
    with pytest.raises(ValueError, match=message) as error:
        load_tuned(clip or tiny_clip(), path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def rewrite(path, tensors=None, **changes):
    """The same file with other tensors or settings."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata["settings"]) | changes
    save_file(tensors or load_file(path), path, metadata | {"settings": json.dumps(settings)})


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(path, size):
    path.write_bytes(path.read_bytes()[:size])
    refused(path, "not a whole file of tuned weights")


def test_a_changed_byte_is_noticed(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    refused(path, "the tensors are not those that were saved")


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "none", "not a whole file of tuned weights: .*No such file")


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a")
    refused(tmp_path / "a", "not saved by save_tuned")


def test_weights_tuned_on_other_weights_are_refused(path):
    refused(path, "tuned on other weights of tiny than those of this CLIP", tiny_clip(seed=1))


def test_weights_tuned_with_another_activation_are_refused(path):
    other = tiny_clip()
    for tower in (other.visual.transformer, other.transformer):
        for block in tower.resblocks:
            block.mlp.gelu = torch.nn.GELU()
    refused(path, "tuned on tiny with quick_gelu, this CLIP has gelu", other)


def test_weights_of_a_wider_clip_are_refused_with_both_shapes(path):
    wider = tiny_clip(vision={"width": 64})
    message = (
        r"tensor visual.transformer.resblocks.0.prompts.tokens: the file has float32 \[3, 48\], "
        r"this CLIP float32 \[3, 64\]"
    )
    refused(path, message, wider)


def test_weights_of_a_deeper_clip_are_refused_by_the_tensor_that_lacks(path):
    refused(path, "tensor .*resblocks.3.prompts.tokens: the file has none", tiny_clip(vision={"layers": 4}))


def test_settings_that_do_not_fit_the_tensors_are_refused(path):
    rewrite(path, options={"text_prompts": 2, "vision_prompts": 5})
    refused(path, r"tensor .*: the file has float32 \[3, 48\], this CLIP float32 \[5, 48\]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method magic is unknown; known are zero_shot, full"),
        ({"options": {"prompts": 3}}, "method vop has no option prompts"),
        ({"options": {"text_prompts": 99}}, "text_prompts: 99 must be at most 14"),
        ({"frames": 0}, "frames: 0 must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused_by_their_name(path, changes, message):
    rewrite(path, **changes)
    refused(path, message)


def test_assign_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"tensor other: the file has float32 \[1\], this CLIP none"):
        assign(tiny_clip().requires_grad_(False), {"other": torch.ones(1)})


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"text_prompts": 2, "vision_prompts": 10**7}}, r"this CLIP float32 \[10000000, 48\]"),
        (
            {
                "method": "vop_p",
                "options": {"text_prompts": 2, "vision_prompts": 3, "specific": 2},
                "frames": 10**9,
            },
            "tensor .*: the file has none",
        ),
        ({"options": {"text_prompts": "two"}}, "vop takes no such options"),
        ({"options": {"text_prompts": None}}, "tensor|options|text_prompts"),
        ({"options": "none"}, "its setting options is 'none', not a dict"),
        ({"method": 3}, "its setting method is '3', not a str"),
        ({"frames": None}, "its setting frames is 'None', not a int"),
        ({"frames": True}, "its setting frames is 'True', not a int"),
        ({"pooling": "max"}, "its pooling 'max' is none of mean, query_aware"),
        ({"backbone": None}, "its setting backbone is 'None', not a str"),
        ({"tokenizer": "google/mt5-base"}, "tuned with the tokenizer google/mt5-base, this CLIP has CLIP"),
    ],
)
def test_settings_that_no_one_saved_are_refused_in_one_line_without_memory(path, changes, message):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rewrite(path, **changes)
    refused(path, message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_settings_nested_without_end_are_refused_in_one_line(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {"settings": DEEP})
    refused(path, "not a whole file of tuned weights")
