"""Cells that share data, frames and backbone stand in one world: read once, decoded once, one folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines import track
from pipelines.cluster import machines
from pipelines.experiment import prepare
from vopcore.config import Cell, ConfigError, Matrix, RunConfig, fingerprint


@dataclass(frozen=True)
class World:
    """config: with the methods of all its cells, for what is checked and decoded once."""

    name: str
    config: RunConfig
    file: str
    cells: Sequence[Cell]


def worlds(matrix: Matrix, cells: Sequence[Cell], label: str) -> list[World]:
    """Every cell once, in its world, as the run `label`.

    Shards and checkpoints of all worlds of a config lie in one place.
    """
    uri = track.store_uri(matrix.mlflow.uri, Path(matrix.output))
    together: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        home = cell.config.output
        place = {
            "run": label,
            "output": f"{home}/{fingerprint(prepare.shared(cell.config))}",
            "storage": cell.config.storage or home,
            "mlflow": cell.config.mlflow.model_copy(update={"uri": uri}),
        }
        placed = replace(cell, config=cell.config.model_copy(update=place))
        together.setdefault(placed.config.output, {}).setdefault(cell.identity, placed)
    return [_world(list(own.values())) for own in together.values()]


def _world(cells: Sequence[Cell]) -> World:
    first = cells[0]
    runs = {fingerprint(run.model_dump()): run for cell in cells for run in cell.config.methods}
    config = first.config.model_copy(update={"methods": tuple(runs.values())})
    return World(f"{config.name} ({Path(config.output).name})", config, first.file, cells)


def check(world: World) -> None:
    """Refuse what can be refused before any work. Raises ValueError."""
    if world.config.resources.max_workers is not None:
        raise ConfigError(
            f"{world.file}: resources.max_workers: a benchmark's cells differ in nothing but what is"
            " compared; leave it out"
        )
    try:
        prepare.check_model(world.config)
        machines.check_places(world.config)
        prepare.check_output(world.config)
        if world.config.shapes is None:  # else its files are only made later
            prepare.annotations(world.config)
    except ConfigError as error:
        raise ConfigError(f"{world.file}: {error}") from None
