"""Loading and refusing CLIPs; towers, prompts, sharing, and texts shorter than the context."""

import copy
import json
import warnings

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support.clip_config import write_clip_config
from support.methods import FRAMES, batch, method, tiny_clip, tuned_clip

from vopcore import clip as clip_module
from vopcore.clip import Prompted, Prompts, Tokens, encode_text, frozen_hash, share, towers
from vopcore.clip.training_block import TrainingBlock, for_training
from vopcore.methods import tune
from vopcore.retriever import Retriever


@pytest.fixture
def config(tmp_path):
    text = {"context_length": 10, "layers": 1}
    return str(write_clip_config(tmp_path / "mine.json", text=text, quick_gelu=True))


# load


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_config_of_ones_own_loads_with_a_local_checkpoint(config, tmp_path, suffix):
    torch.manual_seed(1)
    saved = clip_module.load(config)
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(saved.state_dict(), path)
    torch.manual_seed(2)
    loaded = clip_module.load(config, str(path))
    assert frozen_hash(loaded.requires_grad_(False)) == frozen_hash(saved.requires_grad_(False))
    assert clip_module.activation(loaded) == "quick_gelu"
    assert not loaded.training


def test_a_name_of_open_clip_loads_as_open_clip_builds_it():
    torch.manual_seed(0)
    ours = clip_module.load("ViT-S-32-alt")
    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-S-32-alt")
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert ours.visual.preprocess_cfg["mean"] == theirs.visual.preprocess_cfg["mean"]
    assert clip_module.activation(ours) == "gelu"


def test_weights_of_the_other_activation_are_an_error_that_names_the_right_model(tmp_path):
    wanted = (
        "ViT-B-32: the weights openai were trained with quick-GELU; the right model is ViT-B-32-quickgelu"
    )
    with pytest.raises(ValueError, match=wanted):
        clip_module.load("ViT-B-32", "openai")
    with pytest.raises(
        ValueError, match=r"laion2b_s34b_b79k were trained with GELU; the right model is ViT-B-32$"
    ):
        clip_module.load("ViT-B-32-quickgelu", "laion2b_s34b_b79k")
    (tmp_path / "vit_b_16-laion400m_e32-55e67d44.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"trained with GELU; the right model is ViT-B-16$"):
        clip_module.load("ViT-B-16-quickgelu", str(tmp_path / "vit_b_16-laion400m_e32-55e67d44.pt"))


def test_unknown_models_tags_and_files_are_refused_in_one_line(config, tmp_path):
    with pytest.raises(ValueError, match="ViT-B32: open_clip has no such model; near it are ViT-B-32"):
        clip_module.load("ViT-B32")
    with pytest.raises(
        ValueError, match=r"none.pt is neither a file nor one of its pretrained tags \(openai"
    ):
        clip_module.load("ViT-B-32-quickgelu", "none.pt")
    with pytest.raises(ValueError, match=r"none.json: not a model config"):
        clip_module.load("none.json")
    (tmp_path / "half.json").write_text('{"embed_dim": 4}')
    with pytest.raises(ValueError, match=r"half.json: the model config lacks text_cfg, vision_cfg"):
        clip_module.load(str(tmp_path / "half.json"))
    odd = json.loads(write_clip_config(tmp_path / "odd.json").read_text()) | {"heads": 3}
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    with pytest.raises(ValueError, match=r"odd.json: not a model config of open_clip: .*heads"):
        clip_module.load(str(tmp_path / "odd.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "weights.safetensors: not the weights of"), ({"a": torch.ones(2)}, "not the weights of .*a")],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(config, tmp_path, content, message):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content) if isinstance(content, bytes) else save_file(content, path)
    with pytest.raises(ValueError, match=message) as error:
        clip_module.load(config, str(path))
    assert "\n" not in str(error.value)


def test_a_checkpoint_is_not_unpickled(config, tmp_path):
    path = tmp_path / "code.pt"
    torch.save({"state": warnings.warn}, path)
    with pytest.raises(ValueError, match=r"code.pt: not the weights of .*nothing is unpickled here"):
        clip_module.load(config, str(path))


# tokens


def test_the_end_token_is_never_cut_off(config):
    tokens = clip_module.tokenizer(config, 6)(["one two three four five six seven", "one"])
    assert tokens.shape == (2, 6)
    assert tokens[0, -1] == 49407
    assert tokens[1].tolist()[0::2] == [49406, 49407, 0]
    assert torch.equal(clip_module.tokenizer(clip_module.load(config), 6)(["one"])[0], tokens[1])


def test_more_words_than_the_context_are_refused(config):
    with pytest.raises(
        ValueError, match=r"words: 11 is not between 3 and the 10 tokens that .*mine.json reads"
    ):
        clip_module.tokenizer(config, 11)


@pytest.mark.parametrize("cls", [open_clip.CLIP, open_clip.CustomTextCLIP])
@torch.no_grad()
def test_a_short_text_has_the_feature_of_the_padded_one(cls):
    clip = tiny_clip(cls)
    _, tokens = batch()
    padded = torch.nn.functional.pad(tokens, (0, clip.context_length - tokens.shape[1]))
    torch.testing.assert_close(encode_text(clip, tokens), clip.encode_text(padded), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"tokens \[3, 17\] are longer than the context of 16"):
        encode_text(clip, torch.ones(3, 17, dtype=torch.long))


# towers


@pytest.mark.parametrize("cls", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_both_classes_have_two_towers(cls):
    vision, text, context_length = towers(tiny_clip(cls))
    assert [(t.name, t.layers, t.width) for t in (vision, text)] == [("vision", 3, 48), ("text", 2, 32)]
    assert context_length == 16


def test_what_is_no_clip_of_open_clip_is_refused():
    with pytest.raises(ValueError, match=r"^Linear: a Linear is not an open_clip CLIP; choose"):
        towers(torch.nn.Linear(2, 2))


# prompts


@pytest.mark.parametrize("causal", [False, True])
def test_prompts_stand_behind_the_first_token_and_leave_the_sequence(causal):
    tower = towers(tiny_clip()).text if causal else towers(tiny_clip()).vision
    block, x = tower.blocks[0], torch.randn(3, 5, tower.width)
    prompts = Prompts(tower, 2)
    among = torch.cat([x[:, :1], prompts.tokens.expand(3, -1, -1), x[:, 1:]], dim=1)
    later = torch.full((7, 7), -float("inf")).triu(1) if causal else None
    wanted = block(among, attn_mask=later)[:, [0, 3, 4, 5, 6]]
    out = Prompted(block, prompts)(Tokens(x=x, tower=tower, prefix=1, causal=causal)).x
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)
    by_prompts, by_wanted = (torch.autograd.grad(y.square().sum(), prompts.tokens)[0] for y in (out, wanted))
    torch.testing.assert_close(by_prompts, by_wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["full", "partial", "vop", "vop_c", "vop_f", "vpt", "adapter_attn", "lora"])
def test_in_training_the_class_tokens_are_all_that_the_last_block_computes(name):
    clip = tuned_clip(name, stir=0.05)
    last, sizes = towers(clip).vision.blocks[-1], []
    inner = next(module for module in last.modules() if isinstance(module, TrainingBlock))
    inner.ls_2.register_forward_hook(lambda _module, _x, y: sizes.append(y.shape[:2].numel()))
    pixels, _ = batch(videos=2)
    retriever = Retriever(clip)
    tuning = retriever.train().video(pixels)
    reading = retriever.eval().video(pixels)
    torch.testing.assert_close(tuning, reading, rtol=1e-5, atol=1e-5)
    tokens = 1 + (16 // 8) ** 2
    assert sizes == [2 * FRAMES, 2 * FRAMES * tokens]


def test_quick_gelu_in_training_is_quick_gelu_with_its_gradient():
    block = towers(tiny_clip()).vision.blocks[0]
    plain = copy.deepcopy(block.mlp.gelu)
    for_training(block)
    assert type(block.mlp.gelu) is not type(plain)
    x = torch.linspace(-9, 9, 200, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(block.mlp.gelu.train()(x), plain(x))
    assert torch.autograd.gradcheck(block.mlp.gelu.train(), x)


# sharing


def test_a_shared_clip_uses_the_same_memory_and_leaves_the_first_alone():
    clip = tiny_clip()
    pixels = torch.randn(2, 3, 16, 16)
    before = clip.encode_image(pixels)
    copy = share(clip)
    addresses = {p.data_ptr() for p in clip.parameters()}
    assert {p.data_ptr() for p in copy.parameters()} == addresses
    tune(copy, method("vop"), 4)
    assert all(p.data_ptr() in addresses for p in copy.parameters() if not p.requires_grad)
    assert torch.equal(clip.encode_image(pixels), before)
    assert all(p.requires_grad for p in clip.parameters())
    assert not hasattr(clip, "tuning")


def test_training_weights_of_a_shared_clip_leaves_the_first_alone():
    clip = tiny_clip()
    before = {name: p.detach().clone() for name, p in clip.named_parameters()}
    copy = tune(share(clip), method("full"), 4)
    for parameter in copy.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in clip.named_parameters())


def test_the_hash_of_frozen_weights_notices_one_changed_number():
    clip = tiny_clip().requires_grad_(False)
    before = frozen_hash(clip)
    assert frozen_hash(tiny_clip().requires_grad_(False)) == before
    clip.visual.ln_post.weight[3] += 1e-6
    assert frozen_hash(clip) != before
