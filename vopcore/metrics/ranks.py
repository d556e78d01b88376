"""Where the right answer stands in each query's ranking, ties shared fairly, and the numbers made of it.

A query's right answers that score best stand behind `above` candidates and in a group of `tied` that score
the same, `own` of which are right. Broken at random, the ties give an expected recall and an expected rank;
both are exact here (McSherry & Najork, ECIR 2008). With one right answer the share of R@K is min(max(K -
above, 0), tied) / tied and the rank above + (tied - 1) / 2 + 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vopcore.metrics.names import RECALL_TOPS, recall

NDCG_TOP = 10


@dataclass(frozen=True)
class Ranks:
    """One direction of retrieval, a row per query. Missing queries (`found` False) are never hits and rank
    last.

    above, tied, own: Int64[Q], `tied` counts the right answers too; found: Bool[Q]; ndcg: Float64[Q] in [0,
    1]; candidates: how many there should be, the rank of a missing query.
    """

    above: Tensor
    tied: Tensor
    own: Tensor
    found: Tensor
    ndcg: Tensor
    candidates: int

    def hits(self, top: int) -> Tensor:
        """Float64[Q]: the probability that a right answer is among the first `top`."""
        places = (top - self.above).clamp(min=0)  # places left for the tied group
        wrong = (self.tied - self.own).double()
        missed = torch.ones(len(places), dtype=torch.float64)
        for place in range(int(min(places.max(), wrong.max() + 1))):  # 1 - C(wrong, places) / C(tied, places)
            left = (wrong - place).clamp(min=0) / (self.tied - place).clamp(min=1)
            missed = torch.where(place < places, missed * left, missed)
        return (1 - missed) * self.found

    def ranks(self) -> Tensor:
        """Float64[Q]: the expected rank of the first right answer, 1 = best."""
        expected = self.above + (self.tied + 1).double() / (self.own + 1)
        return torch.where(self.found, expected, float(self.candidates))

    def summary(self) -> dict[str, float]:
        """R1, R5, R10, R50, Rsum (R1 + R5 + R10) in percent, MdR, MnR, nDCG10 in percent, ties and R1's
        bounds.

        `ties` counts queries whose right answer scores exactly as a wrong one; R1_pessimistic and
        R1_optimistic are R1 with all ties lost and all won.
        """
        first = self.found & (self.above == 0)
        ties = self.found & (self.tied > self.own)
        numbers = {recall(top): percent(self.hits(top)) for top in RECALL_TOPS}
        numbers["Rsum"] = numbers["R1"] + numbers["R5"] + numbers["R10"]
        ranks = self.ranks()
        return numbers | {
            "MdR": float(np.median(ranks.numpy())),
            "MnR": ranks.mean().item(),
            "nDCG10": percent(self.ndcg),
            "ties": float(ties.sum()),
            "R1_pessimistic": percent(first & ~ties),
            "R1_optimistic": percent(first),
        }


def percent(share: Tensor) -> float:
    return 100 * share.double().mean().item()


def expected_gain(above: Tensor, tied: Tensor) -> Tensor:
    """Float64: the mean of 1 / log2(rank + 1), 0 below NDCG_TOP, over the places above+1 .. above+tied."""
    gain = ideal_gains()
    upper, lower = (above + tied).clamp(max=NDCG_TOP), above.clamp(max=NDCG_TOP)
    return (gain[upper] - gain[lower]) / tied


def ideal_gains() -> Tensor:
    """Float64[NDCG_TOP + 1]: the gain of 0, 1, ... right answers in the first places."""
    discounts = 1 / torch.log2(torch.arange(2, NDCG_TOP + 2, dtype=torch.float64))
    return torch.cat([torch.zeros(1, dtype=torch.float64), discounts.cumsum(0)])
