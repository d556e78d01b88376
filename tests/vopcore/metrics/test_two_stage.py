"""Two stages give the ranks of all pairs, and their bound is one: against each pair's formula in fp64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vopcore.metrics import TwoStage, evaluate

TEMPERATURE = 5.0


def all_pairs(text, video):
    """Float32 [N, V]: the formula, one pair at a time, from the frames that are not padding."""
    scores = np.empty((len(text), len(video)))
    for row, t in enumerate(text.double().numpy()):
        for column, frames in enumerate(video.double().numpy()):
            real = frames[np.abs(frames).sum(axis=1) > 0]
            logits = real @ t / TEMPERATURE
            weights = np.exp(logits - logits.max())
            v = (weights / weights.sum()) @ real
            scores[row, column] = v @ t / np.linalg.norm(v) / np.linalg.norm(t)
    return torch.from_numpy(scores).float()


def vectors(num_texts, num_videos, frames, width, spread, seed):
    """Texts [N, D] and frames [V, F, D] that lie `spread` around the text of their video; some padding."""
    generator = torch.Generator().manual_seed(seed)
    text = 3 * torch.randn(num_texts, width, generator=generator)
    right = torch.arange(num_videos) % num_texts
    video = text[right, None] + spread * torch.randn(num_videos, frames, width, generator=generator)
    lengths = torch.randint(1, frames + 1, (num_videos,), generator=generator)
    return text, video * (torch.arange(frames) < lengths[:, None])[:, :, None]


@settings(max_examples=30, deadline=None)
@given(
    num_texts=st.integers(1, 9),
    captions_of_a_video=st.integers(1, 3),
    frames=st.integers(1, 5),
    spread=st.sampled_from([0.3, 2.0, 9.0]),  # 9: frames of one video point everywhere
    seed=st.integers(0, 10**6),
)
def test_every_number_is_that_of_all_pairs(num_texts, captions_of_a_video, frames, spread, seed):
    num_videos = num_texts
    text, video = vectors(num_texts, num_videos, frames, 8, spread, seed)
    text = text.repeat(captions_of_a_video, 1) + 0.1 * torch.randn(
        num_texts * captions_of_a_video, 8, generator=torch.Generator().manual_seed(seed)
    )
    video[num_videos // 2] = video[0]  # equal videos tie
    owners = [f"v{number}" for number in range(num_texts)] * captions_of_a_video
    gallery = [f"v{number}" for number in range(1, num_videos)] + ["other"]  # v0 is missing
    video = torch.cat([video[1:], video[:1]])
    if num_videos == 1:
        gallery = ["v0"]

    matrix = all_pairs(text, video)
    two_stage = TwoStage(text, video, TEMPERATURE)
    torch.testing.assert_close(matrix, two_stage_matrix(two_stage, matrix.shape), rtol=0, atol=2e-7)

    exact = two_stage_matrix(two_stage, matrix.shape)
    wanted = evaluate(lambda rows: exact[rows], owners, gallery, num_top=3)
    for block in (1, 7 * num_videos, 10**6):
        got = evaluate(None, owners, gallery, bounded=two_stage, num_top=3, block=block)
        assert got.to_dict() == wanted.to_dict()
        assert torch.equal(got.top.scores, wanted.top.scores)


def two_stage_matrix(two_stage, shape):
    rows = torch.arange(shape[0]).repeat_interleave(shape[1])
    columns = torch.arange(shape[1]).repeat(shape[0])
    return two_stage.pairs(rows, columns).view(shape)


def every_pair(two_stage, text, video):
    """The bound of the first stage and of the second, [N, V] each."""
    rows = torch.arange(len(text))
    products = two_stage._products(rows)
    places = rows.repeat_interleave(len(video))
    columns = torch.arange(len(video)).repeat(len(text))
    closer = two_stage._closer_bound(rows, products, places, columns)
    return two_stage._bound(products), closer.view(len(text), len(video))


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("length", [0.01, 1.0, 30.0])  # of texts: how sharply frames are weighted
def test_no_score_is_above_its_bounds_and_few_pairs_are_left(spread, length, monkeypatch):
    monkeypatch.setattr("vopcore.metrics.two_stage.CHUNK", 7)  # the last is smaller
    text, video = vectors(60, 60, 6, 32, spread, seed=1)
    video[3, 1:] = -video[3, :1]  # its frames cancel out: never excluded
    text = length * text
    two_stage = TwoStage(text, video, TEMPERATURE)
    exact = all_pairs(text, video)
    exact[:, 3] = two_stage_matrix(two_stage, exact.shape)[:, 3]
    bound, closer = every_pair(two_stage, text, video)
    assert (bound >= exact).all()
    assert (closer >= exact).all()
    assert (closer <= bound + 1e-6).all()

    floor = exact.diagonal().double()
    block = two_stage.block(torch.arange(60), floor, torch.full((60,), torch.inf), 0)
    is_left = torch.zeros(60, 60, dtype=torch.bool)
    is_left[block.places, block.columns] = True
    assert (exact < floor[:, None])[~is_left].all()
    assert torch.equal(block.scores, two_stage.pairs(block.places, block.columns))
    if spread < 1:
        assert is_left.float().mean() < 0.05


def test_the_second_bound_is_closer_where_frames_differ():
    text, video = vectors(40, 40, 8, 64, 2.0, seed=2)
    text = text / 10
    bound, closer = every_pair(TwoStage(text, video, TEMPERATURE), text, video)
    exact = all_pairs(text, video)
    assert (closer - exact).median() < 0.7 * (bound - exact).median()


def test_texts_without_length_and_numbers_that_are_none_do_not_fit():
    text, video = vectors(3, 3, 2, 4, 1.0, seed=0)
    assert TwoStage.fits(text, video)
    assert not TwoStage.fits(text * torch.tensor([[1.0], [0.0], [1.0]]), video)
    assert not TwoStage.fits(text, video * torch.tensor([1.0, torch.nan, 1.0])[:, None, None])
    assert not TwoStage.fits(text, video * torch.tensor([1.0, 0.0, 1.0])[:, None, None])
