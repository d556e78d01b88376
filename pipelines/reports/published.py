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
from vopcore.metrics import names

FILE = Path(__file__).with_name("published.csv")

# both papers' CLIP, as open_clip and as OpenAI name it
BACKBONES = ("ViT-B-32", "ViT-B-32-quickgelu")
COLUMNS = {name.lower(): name for name in names.RANKS}  # of the file: {"r1": "R1"}
SOURCES = {
    "vop_paper": ("VoP", "Huang et al., VoP, CVPR 2023, ViT-B/32"),
    "cma_paper": ("CMA", "Jiang et al., Cross-Modal Adapter, Pattern Recognition 2025, ViT-B/32"),
    "stop_paper": ("STOP", "Liu et al., STOP, CVPR 2025, its table of earlier methods, ViT-B/32"),
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
    # `layers=6 width=64`
    options = {}
    for option in record["options"].split():
        name, value = option.split("=", 1)
        options[name] = value

    # Papers leave some numbers out, and some do not count what they tune.
    numbers = {}
    for column, name in COLUMNS.items():
        if record[column]:
            numbers[name] = float(record[column])

    trainable = None
    if record["params_millions"]:
        trainable = 1e6 * float(record["params_millions"])

    return PublishedRow(
        dataset=record["dataset"],
        method=record["method"],
        pooling=record["pooling"],
        frames=int(record["frames"]),
        options=options,
        source=record["source"],
        direction=record["direction"],
        trainable=trainable,
        numbers=numbers,
    )


def beside(run: TrackedRun, direction: str) -> list[PublishedRow]:
    """What papers print of the experiment that `run` is: none, one row, or one of each paper."""
    matches = []
    for row in published():
        if row.direction == direction and is_same_experiment(row, run):
            matches.append(row)
    return matches


def is_same_experiment(row: PublishedRow, run: TrackedRun) -> bool:
    """Whether a paper's row and a run agree in all that this file says decides.

    A setting that the run does not name has its default.
    """
    if row.dataset != run.tags.get("dataset"):
        return False
    if row.method != run.tags.get("method"):
        return False

    if not _has_whole_test_split(run):
        return False
    if not _has_papers_backbone(run):
        return False

    # No paper has merged patches under another method, or let a run of ours teach.
    if run.params.get("method.merge", "0") != "0" or "train.distill.teacher" in run.params:
        return False

    pooling = run.params.get("method.pooling", "mean")
    if pooling != row.pooling:
        return False

    num_frames = run.params.get("video.frames", "12")
    if num_frames != str(row.frames):
        return False
    return _options_of_row(row) == _options_of_run(run)


def _has_whole_test_split(run: TrackedRun) -> bool:
    if run.tags.get("split", "test") != "test":
        return False

    # A run on a part of the data is told by its captions.
    splits = SPLITS[run.tags["dataset"]]
    _, num_captions = splits["test"]
    num_queries = run.metrics.get(names.QUERIES_EXPECTED, num_captions)
    return num_queries == num_captions


def _has_papers_backbone(run: TrackedRun) -> bool:
    backbone = run.tags.get("backbone", "")
    model = run.params.get("clip.model", backbone)
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
    options = {}
    for name, default in defaults.items():
        key = f"method.{name}"
        options[name] = run.params.get(key, default)

    # ViT-B/32 has 12 layers in each tower: to say 12 and to say nothing is one thing.
    for name in ("layers", "text_layers", "vision_layers"):
        if options.get(name) == "12" and defaults.get(name) == "None":
            options[name] = "None"
    return options


def _defaults(method: str) -> dict[str, str]:
    """The options of a method as MLflow writes them: text."""
    fields = dataclasses.fields(METHODS[method])
    return {field.name: str(field.default) for field in fields}
