"""What is found of other data than a method was tuned on, less what the frozen CLIP finds of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from vopcore.metrics.verdict import Evidence, common_variance, estimate_of, hits, paired

QUERY = ["caption", "video"]  # the columns that say which query a row of PREDICTIONS is
SEED_STD = 0.5  # points of R@1 between seeds, assumed where no row has two

# PREDICTIONS of one method on one test split, a table for each seed
Tables = Sequence[pa.Table]


@dataclass(frozen=True)
class Tested:
    """One method, tuned on one data set and tested on one.

    zero_shot: what the frozen CLIP found of the same queries, with the same frames; none where it was not
    measured.
    """

    method: str
    tuned_on: str
    tested_on: str
    recall: float
    tables: Tables
    zero_shot: Tables


@dataclass(frozen=True)
class Transfer:
    """t2v R@1 in percent, and what of it is more than zero-shot's, in points with its 95% interval.

    change, low, high: None of the frozen CLIP itself, and where it was not measured on the same queries.
    """

    method: str
    tuned_on: str
    tested_on: str
    recall: float
    change: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def words(self) -> str:
        """`+3.2 (+1.1 to +5.3)`, or the recall alone."""
        if self.change is None:
            return f"{self.recall:.1f}"
        return f"{self.change:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def transfers(tested: Sequence[Tested], seed_std: float = SEED_STD) -> list[Transfer]:
    """Each against zero-shot, query by query; what seeds leave open is told from all of them together."""
    evidence = [_evidence(one) for one in tested]
    known = [found for found in evidence if found is not None]
    common = common_variance(known, seed_std)

    rows = []
    for one, found in zip(tested, evidence, strict=True):
        row = Transfer(
            one.method,
            one.tuned_on,
            one.tested_on,
            one.recall,
        )
        # without evidence the recall is all there is to say
        if found is not None:
            estimate = estimate_of(found, common)
            row = replace(
                row,
                change=estimate.change,
                low=estimate.low,
                high=estimate.high,
            )
        rows.append(row)
    return rows


def _evidence(tested: Tested) -> Evidence | None:
    if not tested.tables or not tested.zero_shot:
        return None

    # the frozen CLIP has nothing that a seed decides: its first table stands for all
    frozen = tested.zero_shot[0]
    queries = frozen.select(QUERY)

    # compared query by query, so every table must hold the same ones in the same order
    hits_now = []
    for table in tested.tables:
        if not table.select(QUERY).equals(queries):
            return None
        ranks = table["rank"].to_numpy()
        hits_now.append(hits(ranks))

    frozen_ranks = frozen["rank"].to_numpy()
    hits_before = [hits(frozen_ranks)] * len(hits_now)

    # captions of a video are not independent: the interval is told from videos
    videos = frozen["video"].to_pylist()
    _, video_numbers = np.unique(videos, return_inverse=True)
    return paired(hits_before, hits_now, video_numbers)


def matrix_rows(rows: Sequence[Transfer]) -> list[tuple[str, ...]]:
    """Tuned on x tested on, a line per method and what it was tuned on; the first is the header."""
    # columns and lines in the order in which they come first
    columns: dict[str, None] = {}
    words: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        columns[row.tested_on] = None
        line = words.setdefault((row.method, row.tuned_on), {})
        line[row.tested_on] = row.words

    titles = [f"on {column}" for column in columns]
    lines: list[tuple[str, ...]] = [("t2v R@1 less zero-shot's", "tuned on", *titles)]
    for (method, tuned_on), line in words.items():
        cells = [line.get(column, "") for column in columns]
        lines.append((method, tuned_on, *cells))
    return lines
