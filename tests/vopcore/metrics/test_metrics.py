"""Recall, ranks and nDCG against an exhaustive reference: the mean over all orders that break the ties."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vopcore.metrics import MetricError, evaluate

TOPS = (1, 5, 10, 50)


def expected(scores, right):
    """Mean over all tie breaks of (first right rank, nDCG@10); `right` Bool[C]."""
    ranks, gains = [], []
    ideal = sum(1 / np.log2(place + 2) for place in range(min(10, right.sum())))
    for order in permutations(range(len(scores))):
        ranking = right[sorted(order, key=lambda candidate: -scores[candidate])]
        ranks.append(int(ranking.argmax()) + 1)
        gains.append(sum(hit / np.log2(place + 2) for place, hit in enumerate(ranking[:10])) / ideal)
    return np.array(ranks), np.mean(gains)


def reference(queries, worst):
    """R@K, MdR, MnR and nDCG@10 of queries (scores, right), None where the query's video is missing."""
    hits = {top: [] for top in TOPS}
    ranks, gains = [], []
    for query in queries:
        if query is None:
            ranks.append(worst)
            gains.append(0.0)
            for top in TOPS:
                hits[top].append(0.0)
            continue
        broken, gain = expected(*query)
        for top in TOPS:
            hits[top].append(np.mean(broken <= top))
        ranks.append(broken.mean())
        gains.append(gain)
    numbers = {f"R{top}": 100 * np.mean(hits[top]) for top in TOPS}
    return numbers | {"MdR": np.median(ranks), "MnR": np.mean(ranks), "nDCG10": 100 * np.mean(gains)}


@st.composite
def splits(draw):
    """Similarities Float[N, V] with many ties, the captions' videos, a gallery that may lack some of them."""
    video = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    gallery = draw(st.permutations(range(4)).map(lambda order: order[: draw(st.integers(1, 4))]))
    scores = draw(st.lists(st.integers(0, 2), min_size=len(video) * len(gallery), max_size=24))
    return (
        np.array(scores[: len(video) * len(gallery)], dtype=np.float32).reshape(len(video), -1),
        video,
        gallery,
    )


@given(splits(), st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_every_number_is_the_mean_over_all_ways_to_break_ties(split, block):
    scores, video, gallery = split
    captions, names = [f"v{v}" for v in video], [f"v{v}" for v in gallery]
    matrix = torch.from_numpy(scores)
    if not set(video) & set(gallery):
        with pytest.raises(MetricError, match="in the gallery"):
            evaluate(lambda rows: matrix[rows], captions, names)
        return
    numbers = evaluate(lambda rows: matrix[rows], captions, names, block=block).to_dict()
    videos = list(dict.fromkeys(video))
    owner = np.array(video)
    column = {v: gallery.index(v) for v in videos if v in gallery}
    best = {
        v: scores[owner == v].max(axis=0) for v in videos
    }  # Float[V]: the video's best caption, per gallery video
    t2v = [(scores[row], np.array(gallery) == v) if v in column else None for row, v in enumerate(video)]
    sets = [
        (np.array([best[w][column[v]] for w in videos]), np.array(videos) == v) if v in column else None
        for v in videos
    ]
    singles = [(scores[:, column[v]], owner == v) if v in column else None for v in videos]
    wanted = {"t2v": reference(t2v, len(set(video) | set(gallery))), "v2t": reference(sets, len(videos))}
    if len(videos) < len(video):
        wanted["v2t_all"] = reference(singles, len(video))
    assert ("v2t_all/R1" in numbers) == ("v2t_all" in wanted)
    for direction, names in wanted.items():
        for name, value in names.items():
            assert numbers[f"{direction}/{name}"] == pytest.approx(value, abs=1e-9), f"{direction}/{name}"


def square(matrix, **options):
    ids = [f"v{number}" for number in range(len(matrix))]
    return evaluate(lambda rows: matrix[rows], ids, ids, **options)


def test_a_matrix_one_can_check_by_eye():
    matrix = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.3, 0.2, 0.1]])
    numbers = square(matrix).to_dict()
    assert numbers["t2v/R1"] == pytest.approx(100 / 3)  # ranks 1, 2, 3
    assert (numbers["t2v/MdR"], numbers["t2v/MnR"]) == (2.0, 2.0)
    assert numbers["v2t/R1"] == pytest.approx(200 / 3)  # ranks 1, 1, 2
    assert numbers["Rsum"] == pytest.approx(100 / 3 + 200 / 3 + 400)
    assert numbers["queries/found"] == numbers["queries/expected"] == numbers["gallery/found"] == 3


def test_a_constant_matrix_scores_as_chance_and_counts_its_ties():
    numbers = square(torch.zeros(20, 20)).to_dict()
    assert [numbers[f"t2v/R{top}"] for top in TOPS] == pytest.approx([5, 25, 50, 100])
    assert numbers["t2v/ties"] == 20
    assert (numbers["t2v/R1_pessimistic"], numbers["t2v/R1_optimistic"]) == (0, 100)


def test_two_equal_captions_of_one_video_do_not_tie_with_each_other():
    """Among all captions either of them is right: MSVD's lists repeat captions 10,845 times."""
    matrix = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.5, 0.7]])
    numbers = evaluate(lambda rows: matrix[rows], ["a", "a", "b"], ["a", "b"]).to_dict()
    assert numbers["v2t_all/R1"] == 100
    assert numbers["v2t_all/ties"] == 0
    assert numbers["v2t_all/nDCG10"] == pytest.approx(100)


def test_ndcg_counts_more_own_captions_than_there_are_places():
    """Twelve own captions tie with three wrong ones: each of the ten places is right with 12/15."""
    captions = ["a"] * 12 + ["b"] * 3
    matrix = torch.tensor([[0.5, 0.1]] * 12 + [[0.5, 0.9]] * 3)
    ndcg = evaluate(lambda rows: matrix[rows], captions, ["a", "b"]).v2t_all.ndcg
    assert ndcg.tolist() == pytest.approx([12 / 15, 1])


def test_missing_videos_stay_in_the_denominator_at_the_worst_rank():
    matrix = torch.eye(4)[:, :3]
    metrics = evaluate(lambda rows: matrix[rows], list("abcd"), list("abc"))
    numbers = metrics.to_dict()
    assert numbers["t2v/R1"] == numbers["t2v/R10"] == 75  # never a hit, though only four candidates exist
    assert metrics.t2v.ranks().tolist() == [1, 1, 1, 4]
    assert metrics.v2t.ranks().tolist() == [1, 1, 1, 4]
    assert (numbers["queries/found"], numbers["queries/expected"]) == (3, 4)
    assert (numbers["gallery/found"], numbers["gallery/expected"]) == (3, 4)


def test_half_precision_is_raised_before_it_is_compared():
    matrix = torch.randn(50, 50, generator=torch.manual_seed(0)).half()
    assert square(matrix).to_dict() == square(matrix.float()).to_dict()


def test_blocks_give_the_numbers_of_the_whole_matrix():
    matrix = torch.randn(60, 20, generator=torch.manual_seed(0)) + torch.eye(20).repeat(3, 1)
    captions = [f"v{number}" for number in list(range(20)) * 3]  # captions of a video need not stand together
    ids = captions[:20]
    whole = evaluate(lambda rows: matrix[rows], captions, ids).to_dict()
    for block in (1, 7 * 20, 35 * 20):
        assert evaluate(lambda rows: matrix[rows], captions, ids, block=block).to_dict() == whole


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_stops_with_the_ids(value):
    matrix = torch.randn(30, 30, generator=torch.manual_seed(0))
    matrix[:, 3] = value
    matrix[7] = value
    with pytest.raises(MetricError, match=r"video v3, caption 7 of v7$"):
        square(matrix, block=100)
    matrix = torch.zeros(30, 30)
    matrix[4, 5] = value
    with pytest.raises(MetricError, match=r"infinite: caption 4 of v4$"):
        square(matrix, block=100)


def test_a_video_twice_in_the_gallery_is_refused():
    with pytest.raises(MetricError, match="twice"):
        evaluate(lambda rows: torch.zeros(1, 2), ["a"], ["a", "a"])


def test_the_interval_is_the_binomials_and_wider_when_captions_of_a_video_agree():
    generator = torch.manual_seed(0)
    matrix = (
        torch.eye(400) * (torch.rand(400, generator=generator) < 0.4)[:, None] + torch.rand(400, 400) * 0.5
    )
    numbers = square(matrix, seed=1).to_dict()
    share = numbers["t2v/R1"] / 100
    half = 196 * (share * (1 - share) / 400) ** 0.5
    assert numbers["t2v/R1_high"] - numbers["t2v/R1"] == pytest.approx(half, rel=0.15)
    assert numbers["t2v/R1"] - numbers["t2v/R1_low"] == pytest.approx(half, rel=0.15)
    captions = [f"v{number}" for number in range(400) for _ in range(9)]
    nine = matrix.repeat_interleave(9, dim=0)
    several = evaluate(lambda rows: nine[rows], captions, captions[::9], seed=1).to_dict()
    assert several["t2v/R1_high"] == pytest.approx(numbers["t2v/R1_high"])  # as wide as of 400, not of 3,600
