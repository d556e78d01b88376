"""Gradients in two passes, and with recomputed blocks, against those of one pass."""

import pytest
import torch
from support.methods import FRAMES, batch, tuned_clip

from vopcore.config import Train
from vopcore.methods import METHODS
from vopcore.retriever import Retriever
from vopcore.training.batches import Batch
from vopcore.training.gradients import backward, embed
from vopcore.training.loss import contrastive
from vopcore.training.trainer import Tuner

TUNED = [(name, {}) for name in METHODS if name != "zero_shot"] + [("cross_modal_adapter", {"dropout": 0.5})]
IDS = [name + "-dropout" * bool(options) for name, options in TUNED]


def videos(count=7):
    pixels, tokens = batch(count)
    mask = torch.ones(count, FRAMES, dtype=torch.bool)
    mask[3, 1:] = False
    return Batch([f"v{i}" for i in range(count)], pixels, mask, tokens)


def make(name, pooling="mean", learn_scale=True, **options):
    return Retriever(tuned_clip(name, stir=0.3, **options), pooling, learn_scale).train()


def gradients(retriever):
    return {name: p.grad for name, p in retriever.named_parameters() if p.requires_grad}


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        apart = (gradient - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-3)
        assert apart < 1e-5, name  # sums in another order, in fp32


@pytest.mark.parametrize(("name", "options"), TUNED, ids=IDS)
@pytest.mark.parametrize("pooling", ["mean", "query_aware"])
def test_parts_of_a_batch_have_the_gradients_of_the_whole(name, options, pooling):
    whole = videos()
    one = make(name, pooling, **options)
    parts = [embed(one, part, [0, 5, i]) for i, part in enumerate(whole.micro_batches(3))]  # one graph of all
    text, video = (torch.cat(features) for features in zip(*parts, strict=True))
    wanted = contrastive(text, video, whole.mask, one)
    wanted.backward()
    two = make(name, pooling, **options)
    loss = backward(two, two, whole, 3, (0, 5))
    torch.testing.assert_close(loss, wanted.detach())
    assert_same(gradients(two), gradients(one))
    if not options:
        plain = make(name, pooling)
        torch.testing.assert_close(backward(plain, plain, whole, None, (0, 5)), loss)
        assert_same(gradients(two), gradients(plain))


def test_a_batch_is_cut_into_parts_that_make_it_up_again():
    whole = videos()
    crops = torch.arange(35).view(7, 5)
    whole = Batch(whole.videos, whole.frames, whole.mask, whole.tokens, crops)
    parts = whole.micro_batches(3)
    assert [part.videos for part in parts] == [["v0", "v1", "v2"], ["v3", "v4", "v5"], ["v6"]]
    for field in ("frames", "mask", "tokens", "crops"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))


@pytest.mark.parametrize(("name", "options"), TUNED, ids=IDS)
def test_recomputed_blocks_change_no_weight(name, options):
    after = []
    for settings in ({}, {"grad_checkpointing": True}):
        train = Train(epochs=1, lr=1e-2, warmup=0, **settings)
        tuner = Tuner(make(name, learn_scale=False, **options), train, 2, seed=0)
        for _ in range(2):
            tuner.step(videos())
        after.append({name: p.detach() for name, p in tuner.tuned.items()})
    for key, value in after[0].items():
        assert torch.equal(value, after[1][key]), key


def test_activations_of_few_videos_are_held_at_a_time():
    """Bytes that autograd keeps for the backward pass: recomputing holds less, and so do parts."""

    def held(micro_batch, grad_checkpointing):
        retriever, most = make("vop"), 0
        weights = {p.untyped_storage().data_ptr() for p in retriever.parameters()}
        retriever.clip.set_grad_checkpointing(grad_checkpointing)
        now = set()

        class Held:
            def __init__(self, tensor):
                nonlocal most
                mine = tensor.untyped_storage().data_ptr() not in weights
                self.tensor, self.size = tensor, mine * tensor.nbytes
                now.add(self)
                most = max(most, sum(one.size for one in now))

        def unpack(one):
            now.discard(one)
            return one.tensor

        with torch.autograd.graph.saved_tensors_hooks(Held, unpack):
            backward(retriever, retriever, videos(8), micro_batch, (0, 0))
        return most

    whole = held(None, False)
    assert held(2, False) < 0.5 * whole
    assert held(None, True) < 0.5 * whole
