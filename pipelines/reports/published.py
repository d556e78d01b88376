"""Numbers the papers print (published.csv), to stand beside ours with their source."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")
SOURCES = {
    "vop_paper": ("VoP", "Huang et al., VoP, CVPR 2023, ViT-B/32"),
    "cma_paper": ("CMA", "Jiang et al., Cross-Modal Adapter, Pattern Recognition 2025, ViT-B/32"),
}


@dataclass(frozen=True)
class Published:
    """One row of a paper's table; recall in percent."""

    dataset: str
    method: str
    source: str  # a key of SOURCES
    direction: str  # t2v, v2t
    trainable: float  # parameters
    numbers: dict[str, float]  # R1, R5, R10, MdR, MnR

    @property
    def paper(self) -> str:
        return SOURCES[self.source][0]


@cache
def published() -> Sequence[Published]:
    """All of them, in the file's order."""
    names = {"r1": "R1", "r5": "R5", "r10": "R10", "mdr": "MdR", "mnr": "MnR"}
    with FILE.open(newline="") as file:
        return tuple(
            Published(
                dataset=row["dataset"],
                method=row["method"],
                source=row["source"],
                direction=row["direction"],
                trainable=1e6 * float(row["params_millions"]),
                numbers={name: float(row[column]) for column, name in names.items() if row[column]},
            )
            for row in csv.DictReader(file)
        )


def beside(dataset: str, method: str, direction: str) -> list[Published]:
    """What the papers print for this cell: none, one, or one of each paper."""
    wanted = (dataset, method, direction)
    return [row for row in published() if (row.dataset, row.method, row.direction) == wanted]
