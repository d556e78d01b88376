"""Data sets: a name to a function that reads the annotation files people hold into one table.

A new data set is one file here with a function (annotations' folder, videos' folder) -> ANNOTATIONS table,
and a line in DATASETS.
"""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from vopcore.datasets.errors import DatasetError, Problem
from vopcore.datasets.folder import folder
from vopcore.datasets.table import ANNOTATIONS, SPLITS, layout, problems

__all__ = ["ANNOTATIONS", "DATASETS", "SPLITS", "DatasetError", "Problem", "layout", "problems"]

DATASETS: dict[str, Callable[[Path, Path], pa.Table]] = {
    "folder": folder,
}
