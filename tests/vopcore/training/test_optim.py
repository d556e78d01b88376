"""Groups and the learning rate over a run."""

import math

import pytest
import torch
from support.methods import tuned_clip

from vopcore.methods import tuned
from vopcore.training import optim


def test_named_parameters_are_not_decayed():
    named = tuned(tuned_clip("cross_modal_adapter"))
    decayed, kept = optim.build(named.items(), lr=1e-3, weight_decay=0.2, no_decay=("bias",)).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.2, 0.0)
    assert {id(p) for p in kept["params"]} == {id(p) for name, p in named.items() if name.endswith("bias")}
    assert len(decayed["params"]) + len(kept["params"]) == len(named)


def test_everything_is_decayed_if_not_told_otherwise():
    (group,) = optim.build(tuned(tuned_clip("bias")).items(), lr=1e-3).param_groups
    assert group["weight_decay"] == 0.2


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        optim.build(tuned(tuned_clip("zero_shot")).items(), lr=1e-3)


def rates(steps, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = optim.schedule(optimizer, steps, warmup)
    out = []
    for _ in range(steps + 1):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return out


def test_the_rate_rises_linearly_and_falls_as_half_a_cosine():
    got = rates(20, 0.2)
    assert got[:5] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert got[4:] == pytest.approx([1 + math.cos(math.pi * i / 16) for i in range(17)])


@pytest.mark.parametrize("steps", [1, 3])
def test_short_runs_without_warmup_start_at_the_full_rate(steps):
    assert rates(steps, 0.0)[0] == 2.0
    assert rates(steps, 0.0)[-1] == pytest.approx(0.0)


def test_a_warmup_of_the_whole_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup: 1\.0 is not a share of the run"):
        rates(10, 1.0)
