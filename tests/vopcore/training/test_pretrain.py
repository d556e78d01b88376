"""The quickstart's own pretraining: an interruption changes nothing."""

import itertools

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from support import ROOT

from vopcore.clip import load, tokenizer
from vopcore.datasets import shapes
from vopcore.retriever import Retriever
from vopcore.training.pretrain import UNSEEN, StillsTraining, stills_recall


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


def test_what_a_clip_knows_of_stills_is_how_often_their_own_caption_is_nearest():
    """By open_clip itself, still by still."""
    clip, stills_training = training(steps=12)
    list(stills_training)
    tokenize = tokenizer(clip, 16)

    def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
        return shapes.stills(rng, count, 32)

    captions = shapes.still_captions()
    found = stills_recall(Retriever(clip), draw, captions, tokenize, frames=3, seed=7, count=100)

    images, own = draw(np.random.default_rng([7, UNSEEN]), 100)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        text = F.normalize(clip.encode_text(tokenize(captions)), dim=-1)
        image = F.normalize(clip.encode_image(pixels), dim=-1)
    nearest = (image @ text.T).argmax(dim=1).tolist()
    hits = [captions[number] == caption for number, caption in zip(nearest, own, strict=True)]
    assert found.percent == pytest.approx(100 * np.mean(hits))
    assert 0 <= found.low <= found.percent <= found.high <= 100


def test_every_caption_of_a_still_is_listed_once():
    _, drawn = shapes.stills(np.random.default_rng(0), 4000, 8)
    captions = shapes.still_captions()
    assert len(captions) == len(set(captions))
    assert set(captions) == set(drawn)
