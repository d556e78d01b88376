"""The best few scores, against a whole sort."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vopcore.metrics.top import top_scores


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4), columns=st.integers(5, 2000), top=st.integers(1, 5), seed=st.integers(0, 10**6)
)
def test_they_are_the_first_of_a_sort_and_stand_where_it_says(rows, columns, top, seed):
    scores = torch.randn(rows, columns, generator=torch.manual_seed(seed)).round(decimals=1)
    best = top_scores(scores, top)
    assert torch.equal(best.scores, scores.sort(dim=1, descending=True).values[:, :top])
    assert torch.equal(scores.gather(1, best.columns), best.scores)
    assert all(len(set(row)) == top for row in best.columns.tolist())
