"""Training steps, and going on after a stop, to the last bit."""

import resource
from dataclasses import replace

import pytest
import torch
from support.late_files import late_shards
from support.methods import tuned_clip
from support.tuning import CAPTIONS, make_shards, tokenize

from vopcore.config import Train
from vopcore.methods import tuned
from vopcore.retriever import Retriever
from vopcore.training.augment import crop
from vopcore.training.batches import TrainingBatches
from vopcore.training.trainer import DivergedError, Tuner, train


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    shards = make_shards(tmp_path_factory.mktemp("shards"))
    return TrainingBatches(shards, CAPTIONS, tokenize, frames=4, batch_size=8, draw="one", seed=0)


def tuner(batches, name="vop_p", seed=0, **settings):
    torch.manual_seed(seed)
    settings = Train(**({"epochs": 3, "batch_size": 8, "lr": 1e-2} | settings))
    return Tuner(Retriever(tuned_clip(name)), settings, batches.steps_per_epoch, seed)


def weights(of):
    return {name: p.detach().clone() for name, p in tuned(of.retriever).items()}


def test_training_lowers_the_loss_and_tells_every_step(batches):
    steps = []
    train(tuner(batches, epochs=12), batches, 12, steps.append)
    assert [step.number for step in steps] == list(range(1, 37))
    assert sum(s.loss for s in steps[-6:]) < 0.95 * sum(s.loss for s in steps[:6])
    assert steps[0].lr == 0.0
    assert max(s.lr for s in steps) == pytest.approx(1e-2, rel=0.05)
    assert all(s.grad_norm > 0 and s.seconds > 0 for s in steps)
    assert 50 * 2**20 < steps[0].memory <= steps[-1].memory < 100 * 2**30  # torch alone is more than 50 MiB


def test_the_next_epoch_is_read_while_the_last_steps_of_this_one_run(batches, monkeypatch):
    announced = []
    monkeypatch.setattr(batches._shards, "prefetch", announced.extend)
    one = tuner(batches, epochs=2)

    assert len(list(one.epoch(batches))) == batches.steps_per_epoch
    assert len(announced) == 2 * len(CAPTIONS)
    assert len(list(one.epoch(batches))) == batches.steps_per_epoch
    assert len(announced) == 2 * len(CAPTIONS)
    assert len(list(one.epoch(batches))) == batches.steps_per_epoch  # more than was planned for


@pytest.fixture
def few_descriptors():
    """This process may open 256 files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def one_step(shards):
    """The weights after a step over 300 videos."""
    captions = {f"v{number:03}": [f"caption {number}"] for number in range(300)}
    batches = TrainingBatches(shards, captions, tokenize, frames=4, batch_size=300, draw="one", seed=0)
    one = tuner(batches, epochs=1, batch_size=300, warmup=0)
    train(one, batches, 1)
    return weights(one)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_step_reads_more_shards_than_files_may_be_open(tmp_path, few_descriptors, place):
    expected = one_step(make_shards(tmp_path / "one", videos=300, per_shard=300))

    shards = make_shards(tmp_path / "many", videos=300, per_shard=1)
    if place == "bucket":
        shards = late_shards(tmp_path / "many", tmp_path / "cache", lambda: None)
    found = one_step(shards)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", ["vop_p", "cross_modal_adapter"])
def test_a_run_that_stops_anywhere_goes_on_to_the_same_weights(batches, tmp_path, name):
    whole = tuner(batches, name)
    train(whole, batches, 3)
    first = tuner(batches, name)
    for epoch in (first.epoch(batches), first.epoch(batches)):
        for _ in epoch:
            if first.steps_done == 4:  # in the middle of the second epoch
                first.save(tmp_path / "state.pt")
    second = tuner(batches, name, seed=1)
    second._seed = 0
    second.load(tmp_path / "state.pt")
    assert second.steps_done == 4
    train(second, batches, 3)
    for tensor, value in weights(whole).items():
        assert torch.equal(value, weights(second)[tensor]), tensor


def test_what_is_frozen_stays_bit_for_bit(batches):
    one = tuner(batches)
    before = {n: p.clone() for n, p in one.retriever.named_parameters() if not p.requires_grad}
    train(one, batches, 1)
    after = dict(one.retriever.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(after[name].grad is None for name in before)


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_videos(batches):
    one = tuner(batches)
    next(iter(one.tuned.values())).data.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"step 1: loss nan, .* on videos v\d{3}, v\d{3}"):
        train(one, batches, 1)
    assert one.steps_done == 0


def test_a_gradient_that_explodes_stops_the_run_before_it_changes_anything(batches, monkeypatch):
    one = tuner(batches)
    before = {name: p.clone() for name, p in one.tuned.items()}
    monkeypatch.setattr("vopcore.training.trainer.EXPLODED", 1e-9)
    with pytest.raises(DivergedError, match=r"step 1: loss \d.*, gradient norm \d.* on videos v\d{3}"):
        train(one, batches, 1)
    assert all(torch.equal(p, before[name]) for name, p in one.tuned.items())


def test_a_state_of_another_method_is_refused_by_the_name_of_a_tensor(batches, tmp_path):
    tuner(batches, "vop").save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is a checkpoint of other code: its .* here .*run=NAME"):
        tuner(batches, "vop_p").load(tmp_path / "state.pt")


def test_a_state_of_another_format_is_refused_and_one_that_does_not_say_goes_on(batches, tmp_path):
    tuner(batches).save(tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["format"]
    torch.save(state, tmp_path / "first.pt")
    tuner(batches).load(tmp_path / "first.pt")
    torch.save(state | {"format": 2}, tmp_path / "later.pt")
    with pytest.raises(ValueError, match=r"later\.pt is a checkpoint of format 2, and this is 1"):
        tuner(batches).load(tmp_path / "later.pt")


def test_augmented_batches_are_cropped_before_clip_sees_them(batches):
    (batch, *_) = batches.epoch(0)
    whole = torch.tensor([[0, 0, 16, 16, 0]]).expand(8, -1)
    crops = whole + torch.tensor([0, 0, -3, -2, 1])
    by_hand = replace(batch, frames=crop(batch.frames, crops))
    losses = [tuner(batches).step(b)[0] for b in (batch, replace(batch, crops=whole))]
    assert losses[0] == losses[1]
    losses = [tuner(batches).step(b)[0] for b in (by_hand, replace(batch, crops=crops))]
    assert losses[0] == losses[1]
    assert losses[0] != tuner(batches).step(batch)[0]
