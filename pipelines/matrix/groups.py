"""Cells that share data, frames and backbone are one group: read once, decoded once, one output folder."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines import track
from pipelines.experiment import prepare
from pipelines.experiment.annotations import annotations, read_annotations
from pipelines.experiment.identity import data_hash, shared_settings
from vopcore.config import Cell, ConfigError, Matrix, RunConfig, fingerprint
from vopcore.config.sections import Data
from vopcore.storage import below


@dataclass(frozen=True)
class CellGroup:
    """config: with the methods of all its cells, for what is checked and decoded once; file: its YAML."""

    name: str
    config: RunConfig
    file: str
    cells: Sequence[Cell]


def grouped(
    matrix: Matrix,
    cells: Sequence[Cell],
    label: str,
    bucket: str | None = None,
) -> list[CellGroup]:
    """Every cell once, in its group, as the run `label`.

    Shards and checkpoints of all groups of a config lie in one place, below the `bucket` that keeps the
    results, if there is one.
    """
    uri = track.store_uri(matrix.mlflow.uri, Path(matrix.output))
    by_folder: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        home = cell.config.output
        key = fingerprint([shared_settings(cell.config), _data_key(cell.config)])
        shared = below(bucket, cell.tuned_on) if bucket else home
        places = {
            "run": label,
            "output": f"{home}/{key}",
            "storage": cell.config.storage or shared,
            "mlflow": cell.config.mlflow.model_copy(update={"uri": uri}),
        }
        placed = replace(cell, config=cell.config.model_copy(update=places))

        # a cell that stands in two tables is there once
        same_folder = by_folder.setdefault(placed.config.output, {})
        same_folder.setdefault(cell.identity, placed)
    return [_group(list(same_folder.values())) for same_folder in by_folder.values()]


def _group(cells: Sequence[Cell]) -> CellGroup:
    first = cells[0]
    runs = {}
    for cell in cells:
        for run in cell.config.methods:
            runs[fingerprint(run.model_dump())] = run

    # each other config once, in the order of first sight; of two cells one may search what the other does not
    also = []
    for cell in cells:
        also += [entry for entry in cell.config.evaluate.also if entry not in also]

    evaluate = first.config.evaluate.model_copy(update={"also": tuple(also)})
    config = first.config.model_copy(update={"methods": tuple(runs.values()), "evaluate": evaluate})
    name = f"{config.name} ({Path(config.output).name})"
    return CellGroup(name, config, first.file, cells)


def _data_key(config: RunConfig) -> str:
    """The content of the annotations, so that data may be moved; where they are, if they cannot be read."""
    if config.shapes is not None:
        return "rendered"  # from settings that the key holds anyway
    try:
        return _content(config.data)
    except ValueError:
        return config.data.root  # `check` says what is wrong


@functools.cache
def _content(data: Data) -> str:
    return data_hash(read_annotations(data))


def check(group: CellGroup) -> None:
    """Refuse what can be refused before any work. Raises ConfigError."""
    try:
        if group.config.resources.max_workers is not None:
            raise ConfigError(
                "resources.max_workers: a benchmark's cells differ in nothing but what is compared; leave it"
                " out"
            )
        prepare.check(group.config)
        if group.config.shapes is None:  # else its files are only made later
            annotations(group.config)
    except ConfigError as error:
        raise ConfigError(f"{group.file}: {error}") from None
