"""What a run found for each caption of a split: a small table for rank histograms and galleries."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vopcore.metrics.evaluate import Metrics

TOP = 5
PREDICTIONS = pa.schema(
    [
        ("caption", pa.string()),
        ("video", pa.string()),  # the right one
        # 1 = best; ties share the mean of their places; not found: the last
        ("rank", pa.float64()),
        ("found", pa.bool_()),  # whether the right video could be decoded
        ("top", pa.list_(pa.string())),  # the TOP videos that score best, best first
        ("scores", pa.list_(pa.float32())),  # their similarities
    ]
)


def predictions(
    split: pa.Table,
    gallery: Sequence[str],
    metrics: Metrics,
) -> pa.Table:
    """PREDICTIONS, a row per row of `split` (rows of ANNOTATIONS).

    gallery: [V], the ids of the videos in the order of the columns.
    metrics: what `evaluate(..., num_top=TOP)` measured.
    """
    # Arrow holds lists as one flat array and where each list begins in it
    num_captions, num_top = metrics.top.columns.shape
    starts = np.arange(num_captions + 1, dtype=np.int32) * num_top
    offsets = pa.array(starts, pa.int32())

    top_columns = pa.array(metrics.top.columns.flatten().numpy())
    top_videos = pa.array(gallery, pa.string()).take(top_columns)
    top_scores = pa.array(metrics.top.scores.flatten().numpy())

    return pa.table(
        {
            "caption": split["caption"],
            "video": split["video"],
            "rank": metrics.t2v.ranks().numpy(),
            "found": metrics.t2v.is_found.numpy(),
            "top": pa.ListArray.from_arrays(offsets, top_videos),
            "scores": pa.ListArray.from_arrays(offsets, top_scores),
        },
        schema=PREDICTIONS,
    )
