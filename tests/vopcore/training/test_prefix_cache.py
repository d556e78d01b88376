"""Starting from the frozen blocks' output: the same numbers as from pixels, from files written once."""

import copy
from pathlib import Path

import pytest
import torch
from support.clip_families import family_clip
from support.methods import method, tiny_clip, tuned_clip
from support.tuning import CAPTIONS, make_shards, tokenize

from vopcore.clip import Prompted, Prompts, first_tuned_layer, towers, wrap
from vopcore.config import Train
from vopcore.methods import METHODS, tune
from vopcore.retriever import Retriever
from vopcore.storage.whole import machine_id
from vopcore.training import prefix_cache as prefix
from vopcore.training.batches import TrainingBatches, stack_frames
from vopcore.training.trainer import Tuner, train

FRAMES = 4


class Upper:
    """Prompts in the last `layers` vision blocks only."""

    def __init__(self, layers):
        self.layers = layers

    def attach(self, clip, frames):
        vision = towers(clip).vision
        upper = range(vision.layers - self.layers, vision.layers)
        wrap(vision, lambda i, block: Prompted(block, Prompts(vision, 2)), upper)


def tuned_by(kind):
    return tune(tiny_clip(), kind if isinstance(kind, Upper) else method(kind), FRAMES)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("zero_shot", 3), ("proj", 3), ("partial", 2), ("coop", 3), (Upper(1), 2), (Upper(2), 1)]
    + [(name, 0) for name in ("full", "bias", "vop", "vpt", "vop_f", "cross_modal_adapter", "lora", "maple")],
)
def test_the_first_tuned_layer_is_found(kind, layer):
    assert first_tuned_layer(tuned_by(kind)) == layer


def test_a_block_that_looks_across_frames_ends_the_prefix_though_it_is_frozen():
    clip = tuned_clip("vop_f", spatial_layers=2)
    clip.requires_grad_(False)
    assert first_tuned_layer(clip) == 2
    assert not towers(clip).vision.blocks[1].across_frames


def written(folder, retriever, shards, kept, videos=None):
    plan = prefix.plan(retriever, shards, sorted(videos or shards.videos), kept, str(folder))
    prefix.write(plan, plan.missing(), retriever, shards)
    return plan


def steps(retriever, source, tokenize=tokenize, **changes):
    """Loss and gradient norm of each step of two epochs."""
    settings = Train(epochs=2, batch_size=8, lr=1e-2, warmup=0, **changes)
    batches = TrainingBatches(
        source, dict(CAPTIONS), tokenize, frames=FRAMES, batch_size=8, draw="one", seed=0
    )
    tuner, seen = Tuner(retriever, settings, batches.steps_per_epoch, 0), []
    train(tuner, batches, 2, lambda step: seen.append([step.loss, step.grad_norm]))
    return torch.tensor(seen), tuner.tuned


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 3}, {"grad_checkpointing": True}], ids=str)
@pytest.mark.parametrize(
    "kind", ["proj", "partial", "coop", Upper(1)], ids=lambda kind: getattr(kind, "layers", kind)
)
def test_tuning_from_the_prefix_is_tuning_from_pixels(tmp_path, kind, changes):
    shards = make_shards(tmp_path / "shards", short=3)
    clip = tuned_by(kind)
    plain, kept = Retriever(clip), Retriever(copy.deepcopy(clip))
    plan = written(tmp_path / "prefix", kept, shards, "fp32")
    wanted, weights = steps(plain, shards, **changes)
    got, tuned = steps(kept, prefix.Prefix(plan), **changes)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert len(wanted) == 6
    for name, value in weights.items():
        torch.testing.assert_close(tuned[name], value, rtol=1e-3, atol=1e-4)


def full_texts(padding):
    """As `tokenize`, of 16 tokens."""

    def tokens(texts):
        short = tokenize(texts)[:, :3]
        return torch.nn.functional.pad(short, (0, 13), value=padding)

    return tokens


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 3}], ids=str)
@pytest.mark.parametrize(("family", "size", "padding"), [("siglip", 32, 0), ("xlm_roberta", 16, 1)])
def test_so_it_is_on_towers_of_timm_and_of_hugging_face(
    tmp_path, monkeypatch, family, size, padding, changes
):
    shards = make_shards(tmp_path / "shards", short=3, size=size)
    clip = tune(family_clip(tmp_path, family, monkeypatch), METHODS["partial"](), FRAMES)
    assert first_tuned_layer(clip) == 1
    tokens = full_texts(padding)
    whole, plain, kept = (Retriever(copy.deepcopy(clip)) for _ in range(3))
    plan = written(tmp_path / "prefix", kept, shards, "fp32")

    wanted, weights = steps(whole, shards, tokens, micro_batch=None)
    split, weights_split = steps(plain, shards, tokens, **changes)
    got, tuned = steps(kept, prefix.Prefix(plan), tokens, **changes)
    assert len(wanted) == 6
    assert (wanted[0] - wanted[-1]).abs().max() > 1e-3, "it learns"
    for seen in (split, got):
        torch.testing.assert_close(seen, wanted, rtol=1e-3, atol=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(weights_split[name], value, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(tuned[name], value, rtol=1e-2, atol=1e-3)


def test_bf16_halves_the_file_and_rounds_the_numbers_as_bf16_does(tmp_path):
    shards = make_shards(tmp_path / "shards")
    retriever = Retriever(tuned_by("partial"))
    sizes, frames = {}, {}
    for kept in ("fp32", "bf16"):
        plan = written(tmp_path, retriever, shards, kept)
        sizes[kept] = sum(path.stat().st_size for path in Path(plan.folder).glob("*.arrow"))
        frames[kept], mask = stack_frames(prefix.Prefix(plan), ["v003", "v001"], FRAMES, [None, None])
        assert mask.all()
    assert frames["bf16"].dtype == torch.bfloat16
    assert torch.equal(frames["bf16"], frames["fp32"].bfloat16())
    pixels, _ = stack_frames(shards, ["v003", "v001"], FRAMES, [None, None])
    entering = retriever.prefix(pixels.flatten(0, 1), 2).unflatten(0, (2, FRAMES))
    torch.testing.assert_close(frames["fp32"], entering, rtol=1e-5, atol=1e-5)
    assert 0.4 < sizes["bf16"] / sizes["fp32"] < 0.6
    exact = steps(Retriever(tuned_by("partial")), shards)[0]
    rounded = steps(Retriever(tuned_by("partial")), prefix.Prefix(plan))[0]
    torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=1e-2)
    assert not torch.equal(rounded, exact)


def test_past_the_last_block_the_class_token_alone_is_kept(tmp_path):
    shards = make_shards(tmp_path / "shards")
    plan = written(tmp_path, Retriever(tuned_by("proj")), shards, "fp32")
    assert prefix.Prefix(plan).frames("v000").shape == (6, 1, 48)


def test_files_are_written_once_and_by_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix, "BYTES", 10_000)  # so that there are several
    shards = make_shards(tmp_path / "shards")
    retriever = Retriever(tuned_by("partial"))
    plan = prefix.plan(retriever, shards, sorted(shards.videos), "bf16", str(tmp_path / "two"))
    assert len(plan.groups) > 4
    missing = plan.missing()
    told = []
    for rank in (1, 0):
        prefix.write(
            plan, missing[rank::2], retriever, shards, lambda done, total: told.append((done, total))
        )
    assert plan.missing() == []
    assert sorted(told)[-1][0] <= sorted(told)[-1][1]
    one = written(tmp_path / "one", retriever, shards, "bf16")
    names = sorted(path.name for path in Path(plan.folder).iterdir())
    for name in names:
        assert (Path(plan.folder) / name).read_bytes() == (Path(one.folder) / name).read_bytes()
    Path(plan.folder, names[1]).unlink()  # the sidecar of the first: as if killed before it
    assert plan.missing() == [0]
    Path(plan.folder, f".000000.arrow.{machine_id()}-4194304-abc.part").touch()
    prefix.write(plan, plan.missing(), retriever, shards)
    assert sorted(path.name for path in Path(plan.folder).iterdir()) == names


def test_other_weights_below_other_videos_or_another_layer_are_another_prefix(tmp_path):
    shards = make_shards(tmp_path / "shards")
    videos = sorted(shards.videos)

    def folder(clip, videos=videos, shards=shards, kept="bf16"):
        return prefix.plan(Retriever(clip), shards, videos, kept, str(tmp_path)).folder

    same = folder(tuned_by("partial"))
    assert folder(tuned_by("partial")) == same
    changed = tuned_by("partial")
    towers(changed).vision.blocks[0].ln_1.bias.data[0] += 1e-6
    above = tuned_by("partial")
    towers(above).vision.blocks[2].ln_1.bias.data[0] += 1
    assert folder(above) == same
    others = [
        folder(changed),
        folder(tuned_by("proj")),
        folder(tuned_by("partial"), videos[:-1]),
        folder(tuned_by("partial"), kept="fp32"),
        folder(tuned_by("partial"), shards=make_shards(tmp_path / "more", short=1)),
    ]
    assert len({same, *others}) == 6


def test_where_the_first_block_is_tuned_there_is_no_prefix(tmp_path):
    shards = make_shards(tmp_path / "shards")
    for name in METHODS:
        if first_tuned_layer(clip := tuned_by(name)) == 0:
            assert prefix.plan(Retriever(clip), shards, ["v000"], "bf16", str(tmp_path)) is None


@pytest.mark.parametrize(
    "kind", ["proj", "partial", Upper(1)], ids=lambda kind: getattr(kind, "layers", kind)
)
def test_nothing_below_the_first_tuned_block_is_kept_for_the_backward_pass(tmp_path, kind):
    """With pixels: the graph of the loss does not reach below the first tuned block."""
    clip = tuned_by(kind)
    shards = make_shards(tmp_path / "shards")
    pixels, _ = stack_frames(shards, ["v000", "v001"], FRAMES, [None, None])
    seen = {}
    for i, block in enumerate(towers(clip).vision.blocks):
        end = next(module for name, module in block.named_modules() if name.endswith("ls_2"))
        end.register_forward_hook(lambda _m, _x, y, i=i: seen.update({i: y.requires_grad}))
    Retriever(clip).train().video(pixels)
    first = first_tuned_layer(clip)
    assert seen == {i: i >= first for i in range(3)}
