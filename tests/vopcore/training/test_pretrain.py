"""The quickstart's own pretraining: an interruption changes nothing."""

import itertools

import torch
from support import ROOT

from vopcore.clip import load, tokenizer
from vopcore.datasets import shapes
from vopcore.training.pretrain import StillsTraining


def training(steps: int = 6) -> tuple[torch.nn.Module, StillsTraining]:
    torch.manual_seed(0)
    clip = load(str(ROOT / "conf/tiny_clip.json"), None)
    tokenize = tokenizer(clip, 16)
    return clip, StillsTraining(
        clip,
        lambda rng, count: shapes.stills(rng, count, 32),
        tokenize,
        steps=steps,
        batch_size=16,
        lr=3e-3,
        seed=0,
    )


def test_one_that_was_interrupted_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    whole_clip, whole = training()
    losses = list(whole)

    _, first = training()
    begun = list(itertools.islice(first, 3))
    first.save(tmp_path / "state")

    torch.manual_seed(99)  # another process, in another state
    clip, second = training()
    second.load(tmp_path / "state")
    assert second.steps_done == 3
    assert begun + list(second) == losses
    for name, tensor in whole_clip.state_dict().items():
        assert torch.equal(clip.state_dict()[name], tensor), name
