"""Data sets: a name to a function that reads the annotation files people hold into one table.

A new data set is one file here with a function (annotations' folder, videos' folder) -> ANNOTATIONS table,
and a line in DATASETS.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa

from vopcore.datasets import (
    activitynet,
    didemo,
    folder,
    lsmdc,
    msrvtt,
    msvd,
    vatex,
    webdataset,
)
from vopcore.datasets.errors import DatasetError, Problem
from vopcore.datasets.match import VideosFolder
from vopcore.datasets.table import ANNOTATIONS, SPLITS, layout, problems, sources

__all__ = [
    "ANNOTATIONS",
    "DATASETS",
    "PUBLISHED",
    "SPLITS",
    "DatasetError",
    "Problem",
    "VideosFolder",
    "layout",
    "problems",
    "sources",
]

DATASETS: dict[str, Callable[[Path, str | Path | VideosFolder], pa.Table]] = {
    "folder": folder.folder,
    "msrvtt_9k": msrvtt.msrvtt_9k,
    "msrvtt_7k": msrvtt.msrvtt_7k,
    "msrvtt_full": msrvtt.msrvtt_full,
    "msvd": msvd.msvd,
    "lsmdc": lsmdc.lsmdc,
    "activitynet": activitynet.activitynet,
    "didemo": didemo.didemo,
    "vatex": vatex.vatex,
    "webdataset": webdataset.webdataset,
}

# split -> (videos, captions) as published, None where a number is not; people's own videos have none
PUBLISHED: dict[str, Mapping[str, tuple[int | None, int]]] = {
    "msrvtt_9k": msrvtt.PUBLISHED_9K,
    "msrvtt_7k": msrvtt.PUBLISHED_7K,
    "msrvtt_full": msrvtt.PUBLISHED_FULL,
    "msvd": msvd.PUBLISHED,
    "lsmdc": lsmdc.PUBLISHED,
    "activitynet": activitynet.PUBLISHED,
    "didemo": didemo.PUBLISHED,
    "vatex": vatex.PUBLISHED,
}
