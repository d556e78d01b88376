"""Where the right answer stands in each query's ranking, ties shared fairly, and the numbers made of it.

A query's best right answers stand behind `above` candidates, in a group of `tied` that score the same, of
which `tied_right` are right. Broken at random, the ties give an expected recall and an expected rank; both
are exact here (McSherry & Najork, ECIR 2008). With one right answer the share of R@K is min(max(K - above,
0), tied) / tied and the rank above + (tied - 1) / 2 + 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vopcore.metrics.names import RECALL_TOPS, recall

NDCG_TOP = 10


@dataclass(frozen=True)
class Ranks:
    """One direction of retrieval, a row per query.

    above, tied, tied_right: Int64[Q]; `tied` counts the right answers too.
    is_found: Bool[Q]; a query whose right answer is missing is never a hit and ranks last.
    ndcg: Float64[Q] in [0, 1].
    candidates: how many there should be, which is the rank of a missing query.
    """

    above: Tensor
    tied: Tensor
    tied_right: Tensor
    is_found: Tensor
    ndcg: Tensor
    candidates: int

    def hits(self, top: int) -> Tensor:
        """Float64[Q]: the probability that a right answer is among the first `top`."""
        places = (top - self.above).clamp(min=0)  # left for the tied group
        tied_wrong = (self.tied - self.tied_right).double()

        # The tied group fills its places at random. All are wrong with a probability of
        # C(tied_wrong, places) / C(tied, places), which is a product over the places; beyond
        # tied_wrong + 1 of them it is 0 already.
        most_places = places.max()
        most_wrong = tied_wrong.max()
        num_factors = int(min(most_places, most_wrong + 1))
        missed = torch.ones(len(places), dtype=torch.float64)
        for place in range(num_factors):
            wrong_left = (tied_wrong - place).clamp(min=0)
            tied_left = (self.tied - place).clamp(min=1)
            still_missed = missed * (wrong_left / tied_left)

            # a query with fewer places left has no such factor
            has_place = place < places
            missed = torch.where(has_place, still_missed, missed)
        return (1 - missed) * self.is_found

    def ranks(self) -> Tensor:
        """Float64[Q]: the expected rank of the first right answer, 1 = best."""
        place_in_group = (self.tied + 1).double() / (self.tied_right + 1)
        expected = self.above + place_in_group
        return torch.where(self.is_found, expected, float(self.candidates))

    def summary(self) -> dict[str, float]:
        """R1, R5, R10, R50, Rsum (R1 + R5 + R10) in percent, MdR, MnR, nDCG10 in percent, ties and R1's
        bounds.

        `ties` counts queries whose right answer scores exactly as a wrong one; R1_pessimistic and
        R1_optimistic are R1 with all ties lost and all won.
        """
        numbers = {recall(top): percent(self.hits(top)) for top in RECALL_TOPS}
        numbers["Rsum"] = numbers["R1"] + numbers["R5"] + numbers["R10"]

        ranks = self.ranks()
        numbers["MdR"] = float(np.median(ranks.numpy()))
        numbers["MnR"] = ranks.mean().item()
        numbers["nDCG10"] = percent(self.ndcg)

        is_first = self.is_found & (self.above == 0)
        has_wrong_tie = self.is_found & (self.tied > self.tied_right)
        numbers["ties"] = float(has_wrong_tie.sum())
        numbers["R1_pessimistic"] = percent(is_first & ~has_wrong_tie)
        numbers["R1_optimistic"] = percent(is_first)
        return numbers


def percent(share: Tensor) -> float:
    """The mean of shares or of flags, in percent."""
    return 100 * share.double().mean().item()


def expected_gain(above: Tensor, tied: Tensor) -> Tensor:
    """Float64: the mean of 1 / log2(rank + 1), 0 below NDCG_TOP, over the places above+1 .. above+tied."""
    gain_of_first = ideal_gains()
    last_place = (above + tied).clamp(max=NDCG_TOP)
    place_before = above.clamp(max=NDCG_TOP)
    gain = gain_of_first[last_place] - gain_of_first[place_before]
    return gain / tied


def ideal_gains() -> Tensor:
    """Float64[NDCG_TOP + 1]: the gain of 0, 1, ... right answers in the first places."""
    none = torch.zeros(1, dtype=torch.float64)
    ranks = torch.arange(1, NDCG_TOP + 1, dtype=torch.float64)
    discounts = 1 / torch.log2(ranks + 1)
    gains = discounts.cumsum(0)
    return torch.cat([none, gains])
