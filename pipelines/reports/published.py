"""Numbers that papers print (published.csv), to stand beside a run of the same experiment with their source.

The same experiment: data set with its test split, method, every option of the method, pooling, number of
frames and frozen CLIP. A run that differs in any of them has no published number. What may still differ is
how long and with what learning rate was trained, and how many words of a caption were read.
"""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipelines.track import TrackedRun
from vopcore.datasets import PUBLISHED as SPLITS
from vopcore.methods import METHODS

FILE = Path(__file__).with_name("published.csv")
BACKBONES = ("ViT-B-32", "ViT-B-32-quickgelu")  # both papers' CLIP, as open_clip and as OpenAI name it
COLUMNS = {"r1": "R1", "r5": "R5", "r10": "R10", "mdr": "MdR", "mnr": "MnR"}
SOURCES = {
    "vop_paper": ("VoP", "Huang et al., VoP, CVPR 2023, ViT-B/32"),
    "cma_paper": ("CMA", "Jiang et al., Cross-Modal Adapter, Pattern Recognition 2025, ViT-B/32"),
}


@dataclass(frozen=True)
class PublishedRow:
    """One row of a paper's table; recall in percent."""

    dataset: str
    method: str
    pooling: str
    frames: int
    options: Mapping[str, str]  # of the method, where they differ from its defaults
    source: str  # a key of SOURCES
    direction: str  # t2v, v2t
    trainable: float | None  # parameters; None where the paper does not say
    numbers: Mapping[str, float]  # R1, R5, R10, MdR, MnR

    @property
    def paper(self) -> str:
        return SOURCES[self.source][0]


@cache
def published() -> Sequence[PublishedRow]:
    """All rows, in the file's order."""
    with FILE.open(newline="") as file:
        return tuple(_read_row(record) for record in csv.DictReader(file))


def _read_row(record: Mapping[str, str]) -> PublishedRow:
    options = dict(word.split("=", 1) for word in record["options"].split())
    numbers = {name: float(record[column]) for column, name in COLUMNS.items() if record[column]}
    millions = record["params_millions"]

    return PublishedRow(
        dataset=record["dataset"],
        method=record["method"],
        pooling=record["pooling"],
        frames=int(record["frames"]),
        options=options,
        source=record["source"],
        direction=record["direction"],
        trainable=1e6 * float(millions) if millions else None,
        numbers=numbers,
    )


def beside(run: TrackedRun, direction: str) -> list[PublishedRow]:
    """What papers print of the experiment that `run` is: none, one row, or one of each paper."""
    return [row for row in published() if row.direction == direction and is_same_experiment(row, run)]


def is_same_experiment(row: PublishedRow, run: TrackedRun) -> bool:
    """Whether a paper's row and a run agree in all that this file says decides.

    A setting that the run does not name has its default.
    """
    if row.dataset != run.tags.get("dataset") or row.method != run.tags.get("method"):
        return False
    if not _has_whole_test_split(run) or not _has_papers_backbone(run):
        return False

    if row.pooling != run.params.get("method.pooling", "mean"):
        return False
    if str(row.frames) != run.params.get("video.frames", "12"):
        return False
    return _options_of_row(row) == _options_of_run(run)


def _has_whole_test_split(run: TrackedRun) -> bool:
    if run.tags.get("split", "test") != "test":
        return False
    _, num_captions = SPLITS[run.tags["dataset"]]["test"]
    return run.metrics.get("queries/expected", num_captions) == num_captions


def _has_papers_backbone(run: TrackedRun) -> bool:
    model = run.params.get("clip.model", run.tags.get("backbone", ""))
    if model not in BACKBONES:
        return False

    # Weights are a tag of open_clip or a file of the user's, whose name is all that tells where it is from.
    weights = run.params.get("clip.pretrained", "openai")
    name = Path(weights).name.lower()
    return "openai" in name or name == "vit-b-32.pt"


def _options_of_row(row: PublishedRow) -> dict[str, str]:
    return _defaults(row.method) | dict(row.options)


def _options_of_run(run: TrackedRun) -> dict[str, str]:
    """The options of the run's method; a number of layers that means all of them is the default."""
    defaults = _defaults(run.tags["method"])
    options = {name: run.params.get(f"method.{name}", default) for name, default in defaults.items()}

    # ViT-B/32 has 12 layers in each tower: to say 12 and to say nothing is one thing.
    for name in ("layers", "text_layers", "vision_layers"):
        if options.get(name) == "12" and defaults[name] == "None":
            options[name] = "None"
    return options


def _defaults(method: str) -> dict[str, str]:
    return {field.name: str(field.default) for field in dataclasses.fields(METHODS[method])}
