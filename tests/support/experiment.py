"""Annotations row by row, for the tests of what is checked before a run."""

import pyarrow as pa

from vopcore.datasets import ANNOTATIONS


def table(*rows):
    """An ANNOTATIONS table of (split, video, caption) rows."""
    return pa.Table.from_pylist(
        [dict(zip(("split", "video", "caption"), row, strict=True)) for row in rows], schema=ANNOTATIONS
    )
