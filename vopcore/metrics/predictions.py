"""What a run found for each caption of a split: a small table for rank histograms and galleries."""

from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from vopcore.metrics import Ranks
from vopcore.metrics.count import BLOCK, Similarity

TOP = 5
PREDICTIONS = pa.schema(
    [
        ("caption", pa.string()),
        ("video", pa.string()),  # the right one
        ("rank", pa.float64()),  # 1 = best; ties share the mean of their places; not found: the last
        ("found", pa.bool_()),  # whether the right video could be decoded
        ("top", pa.list_(pa.string())),  # the TOP videos that score best, best first
        ("scores", pa.list_(pa.float32())),  # their similarities
    ]
)


def predictions(similarity: Similarity, split: pa.Table, gallery: Sequence[str], t2v: Ranks) -> pa.Table:
    """PREDICTIONS, a row per row of `split` (rows of ANNOTATIONS).

    similarity: numbers of captions, Int64[n], to their similarities to the gallery, Float[n, V].
    t2v: what `evaluate` measured with the same similarities.
    """
    best = min(TOP, len(gallery))
    parts = [
        similarity(rows).float().topk(best, dim=1)
        for rows in torch.arange(len(split)).split(max(1, BLOCK // len(gallery)))
    ]
    places: Tensor = torch.cat([part.indices for part in parts])
    return pa.table(
        {
            "caption": split["caption"],
            "video": split["video"],
            "rank": t2v.ranks().numpy(),
            "found": t2v.found.tolist(),
            "top": [[gallery[place] for place in row] for row in places.tolist()],
            "scores": torch.cat([part.values for part in parts]).tolist(),
        },
        schema=PREDICTIONS,
    )
