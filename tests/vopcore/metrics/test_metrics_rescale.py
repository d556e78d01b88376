"""DSL and QB-Norm against their formulas on whole matrices."""

import numpy as np
import pytest
import torch

from vopcore.metrics import count, dsl, evaluate, qb_norm, rescale

RNG = np.random.default_rng(0)
SIMS = RNG.uniform(-0.3, 0.5, (60, 40))
BANK = RNG.uniform(-0.3, 0.5, (25, 40))


@pytest.fixture(autouse=True, params=[7 * 40, count.BLOCK])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(rescale, "BLOCK", request.param)


def block(matrix):
    return lambda rows: torch.from_numpy(matrix)[rows]


def test_dsl_is_the_similarity_times_its_softmax_over_captions():
    logits = 100 * SIMS
    weights = np.exp(logits - logits.max(axis=0))
    expected = logits * weights / weights.sum(axis=0)
    rescaled = dsl(block(SIMS), len(SIMS))
    np.testing.assert_allclose(rescaled(torch.arange(60)), expected, rtol=1e-10)
    np.testing.assert_allclose(rescaled(torch.tensor([5, 3])), expected[[5, 3]], rtol=1e-10)


@pytest.mark.parametrize("k", [1, 3])
def test_qb_norm_divides_only_rows_whose_best_video_is_a_hub_of_the_bank(k):
    hubs = {video for row in BANK for video in np.argsort(-row)[:k]}
    expected = SIMS.copy()
    for row, scores in enumerate(SIMS):
        if scores.argmax() in hubs:
            expected[row] = np.exp(20 * scores) / np.exp(20 * BANK).sum(axis=0)
    before = SIMS.copy()
    rescaled = qb_norm(block(SIMS), block(BANK), len(BANK), k=k)(torch.arange(60))
    np.testing.assert_allclose(rescaled, expected, rtol=1e-10)
    np.testing.assert_array_equal(SIMS, before)
    assert not np.allclose(expected, SIMS)


def test_rescaled_numbers_stand_beside_the_plain_ones_under_their_own_names():
    ids = [f"v{number}" for number in range(40)]
    plain = evaluate(block(SIMS), ids, ids).to_dict()
    rescaled = evaluate(dsl(block(SIMS), 40), ids, ids, post_processing="dsl").to_dict()
    assert set(rescaled) == {f"dsl/{name}" for name in plain}
    assert not set(plain) & set(rescaled)
