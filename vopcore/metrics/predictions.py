"""What a run found for each caption of a split: a small table for rank histograms and galleries."""

from collections.abc import Sequence

import pyarrow as pa

from vopcore.metrics.evaluate import Metrics

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


def predictions(split: pa.Table, gallery: Sequence[str], metrics: Metrics) -> pa.Table:
    """PREDICTIONS, a row per row of `split` (rows of ANNOTATIONS).

    gallery: [V], the ids of the videos in the order of the columns.
    metrics: what `evaluate(..., num_top=TOP)` measured.
    """
    num_captions, num_top = metrics.top.columns.shape
    offsets = pa.array(range(0, num_captions * num_top + 1, num_top) if num_top else [0] * (num_captions + 1))
    names = pa.array(gallery, pa.string()).take(pa.array(metrics.top.columns.flatten().numpy()))
    scores = pa.array(metrics.top.scores.flatten().numpy())
    return pa.table(
        {
            "caption": split["caption"],
            "video": split["video"],
            "rank": metrics.t2v.ranks().numpy(),
            "found": metrics.t2v.found.numpy(),
            "top": pa.ListArray.from_arrays(offsets.cast(pa.int32()), names),
            "scores": pa.ListArray.from_arrays(offsets.cast(pa.int32()), scores),
        },
        schema=PREDICTIONS,
    )
