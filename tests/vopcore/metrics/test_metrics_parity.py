"""The published scripts' numbers: their rules restated in plain loops, and cases whose outcome is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vopcore.metrics import PARITY, MetricError, evaluate, published


def loop_clip4clip(matrix):
    """0-based ranks as `sort(-x) - diag(-x) == 0` finds them, row by row."""
    ranks = []
    for row, scores in enumerate(matrix):
        with np.errstate(invalid="ignore"):
            ranks += np.flatnonzero(np.sort(-scores) - -scores[row] == 0).tolist()
    return np.array(ranks)


@st.composite
def squares(draw):
    side = draw(st.integers(1, 7))
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan"), float("inf"), float("-inf")])
    return np.array(draw(st.lists(values, min_size=side * side, max_size=side * side))).reshape(side, side)


@given(squares())
@settings(max_examples=150, deadline=None)
def test_clip4clip_with_ties_and_nan_is_the_loop_over_sorted_rows(matrix):
    numbers = PARITY["clip4clip"](torch.from_numpy(matrix), torch.arange(len(matrix)))
    for name, scores in [("t2v", matrix), ("v2t", matrix.T)]:
        ranks = loop_clip4clip(scores)
        if not len(ranks):
            assert np.isnan(numbers[f"{name}/R1"])
            continue
        for top in (1, 5, 10, 50):
            assert numbers[f"{name}/R{top}"] == pytest.approx(100 * np.mean(ranks < top))
        assert numbers[f"{name}/MdR"] == np.median(ranks) + 1
        assert numbers[f"{name}/MnR"] == pytest.approx(ranks.mean() + 1)


def test_known_flaws_of_clip4clip_come_out():
    constant = PARITY["clip4clip"](torch.zeros(20, 20), torch.arange(20))
    assert (constant["t2v/R1"], constant["t2v/MdR"]) == (5, 10.5)  # 400 entries for 20 queries
    matrix = torch.randn(200, 200, generator=torch.manual_seed(0)) + 2 * torch.eye(200)
    clean = PARITY["clip4clip"](matrix, torch.arange(200))
    matrix[:, 5] = float("nan")
    holed = PARITY["clip4clip"](matrix, torch.arange(200))
    hits = clean["t2v/R1"] * 2
    assert (
        holed["t2v/R1"] >= (hits - 1) / 1.99
    )  # the query with the broken video left, the number did not fall
    several = torch.cat([matrix, matrix[:1]])[[0, 200, *range(1, 200)]]
    owner = torch.tensor([0, *range(200)])
    assert PARITY["clip4clip"](several, owner)["t2v/R1"] == 0  # one NaN column beats everyone
    assert PARITY["xpool"](matrix, torch.arange(200))["t2v/R1"] == 0


def test_the_median_of_two_ranks_is_the_lower_one_only_in_clip4clips_tensor_function():
    matrix = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.8, 0.7]])
    owner = torch.tensor([0, 1, 1])
    four = torch.cat([matrix[:1], matrix]), torch.cat([torch.tensor([0]), owner])  # ranks 1, 1, 2, 2
    assert PARITY["clip4clip"](*four)["t2v/MdR"] == 1
    assert PARITY["xpool"](*four)["t2v/MdR"] == 1.5


def test_qb_norms_script_averages_ties_and_rounds():
    matrix = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.9, 0.9], [0.1, 0.2, 0.3]])
    numbers = PARITY["qb_norm"](matrix, torch.arange(3))
    assert numbers["t2v/R1"] == 33.3  # ranks 0.5, 1, 0: half a rank is no hit at 1
    assert numbers["t2v/R5"] == 100
    assert numbers["t2v/MnR"] == 1.5
    with pytest.raises(MetricError, match="no rule"):
        PARITY["qb_norm"](matrix / 0, torch.arange(3))


@pytest.mark.parametrize("name", PARITY)
@pytest.mark.parametrize("several", [False, True])
def test_without_ties_and_flaws_every_script_agrees_with_ours(name, several):
    generator = torch.manual_seed(0)
    captions = [f"v{n}" for n in range(31) for _ in range(1 + several * (n % 4))]
    gallery = [f"v{n}" for n in torch.randperm(31, generator=generator).tolist()]
    matrix = torch.rand(len(captions), 31, generator=generator)
    order = torch.randperm(len(captions), generator=generator)
    captions = [captions[row] for row in order]
    ours = evaluate(lambda rows: matrix[rows], captions, gallery).to_dict()
    theirs = published(name, lambda rows: matrix[rows], captions, gallery)
    lower = several and name == "clip4clip"  # the lower middle as median
    for key, number in theirs.items():
        _, direction, short = key.split("/")
        if name == "qb_norm" and direction == "v2t" and several:
            direction = "v2t_all"
        if f"{direction}/{short}" in ours and not (lower and short == "MdR"):
            wanted = ours[f"{direction}/{short}"]
            assert number == pytest.approx(wanted, abs=0.051 if name == "qb_norm" else 1e-4), key


def test_captions_of_missing_videos_leave_the_published_numbers():
    matrix = torch.eye(3)[:, :2]
    assert (
        published("clip4clip", lambda rows: matrix[rows], list("abc"), list("ab"))["clip4clip/t2v/R1"] == 100
    )
    assert evaluate(lambda rows: matrix[rows], list("abc"), list("ab")).to_dict()["t2v/R1"] == pytest.approx(
        200 / 3
    )
