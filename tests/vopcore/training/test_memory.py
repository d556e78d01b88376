"""The estimate of a step's memory, and into how many parts a batch is split for it."""

import pytest
import torch
from support.methods import FRAMES, batch, tuned_clip

from vopcore.retriever import Retriever
from vopcore.training import memory, precision
from vopcore.training.batches import Batch
from vopcore.training.memory import AllocatedBytes, MemoryEstimate


def test_a_batch_that_fits_is_not_split_and_another_is_split_evenly():
    needs = MemoryEstimate(fixed=100, per_video=10)
    assert needs.micro_batch(32, available=420) is None
    assert needs.micro_batch(32, available=419) == 16
    assert needs.micro_batch(100, available=400) == 25
    assert needs.micro_batch(7, available=130) == 3


def test_a_video_that_does_not_fit_alone_is_said_with_the_ways_out():
    needs = MemoryEstimate(fixed=2**30, per_video=2**30)
    with pytest.raises(MemoryError, match=r"one video needs 2\.0 GiB, there are 1\.5 GiB.*micro_batch.*bf16"):
        needs.micro_batch(8, available=3 * 2**29)


def test_the_estimate_grows_with_what_is_tuned_and_leaves_no_gradient():
    pixels, tokens = batch(1)
    like = Batch(["v"], pixels, torch.ones(1, FRAMES, dtype=torch.bool), tokens)
    needs = {}
    for name in ("proj", "vop", "full"):
        one = Retriever(tuned_clip(name)).train()
        needs[name] = memory.estimate(one, like)
        assert all(parameter.grad is None for parameter in one.parameters())
    assert needs["proj"].per_video < needs["vop"].per_video < needs["full"].per_video
    assert needs["vop"].fixed < needs["full"].fixed


def test_allocated_bytes_counts_what_is_held_at_once_and_no_view():
    with AllocatedBytes(torch.device("cpu")) as allocated:
        first = torch.zeros(1000)
        first[:10].add_(1)
        second = first + 1
        del first
        third = second * 2
    assert allocated.peak == 2 * 4000
    assert third.numel() == 1000


def test_auto_is_bf16_on_cards_that_have_it_and_fp32_elsewhere(monkeypatch):
    cuda = torch.device("cuda")
    for capability, wanted in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert precision.resolve("auto", cuda) == wanted
    assert precision.resolve("auto", torch.device("cpu")) == "fp32"
    assert precision.resolve("tf32", cuda) == "tf32"


@pytest.mark.parametrize(("setting", "towers", "allowed"), [("tf32", "fp32", True), ("bf16", "bf16", False)])
def test_a_precision_sets_up_the_process(setting, towers, allowed):
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        assert precision.apply(setting) == towers
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        precision.apply("tf32" if before else "fp32")
