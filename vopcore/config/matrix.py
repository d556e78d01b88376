"""A benchmark's YAML: tables of configs x methods x variants x seeds, read into cells before any work."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vopcore.config.identity import fingerprint
from vopcore.config.read import ConfigError, first_mistake, load, mapping, read_config, unknown
from vopcore.config.sections import Folder, MLflow, Positive, RunConfig, Section, Share

OURS = ("name", "output", "seed", "run", "stages", "compare", "method.name", "mlflow")  # not for `set`

Settings = dict[str, Any]  # over a config's own; keys may be nested or dotted


class Part(Section):
    """A config of the matrix: its file and what is set over it."""

    file: str
    set: Settings = Field(default_factory=dict)


class Table(Section):
    """One table of results: every combination of its configs, methods, variants and seeds."""

    configs: tuple[str, ...] | None = None  # names of `configs`; null: all
    methods: tuple[str, ...] | None = None  # null: what each config compares
    variants: dict[str, Settings] = Field(default_factory=dict)  # settings by name
    seeds: tuple[int, ...] | None = Field(None, min_length=1)  # null: those of the benchmark


class Matrix(Section):
    """A benchmark, as its file says it."""

    name: str
    output: Folder
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    at_once: Positive | None = None  # cells side by side; null: as many as the cluster has room for
    false_alarms: Share = 0.01  # how often, at most, a rerun may call mere noise a regression
    seed_std: float = Field(0.5, ge=0)  # points of R@1 between seeds, assumed where no row has two
    set: Settings = Field(default_factory=dict)  # over every config
    configs: dict[str, Part]
    tables: dict[str, Table]
    mlflow: MLflow = MLflow()


@dataclass(frozen=True)
class Cell:
    """One run of the matrix: exactly `pipelines/run.py` on `file` with `overrides`."""

    row: str  # table, config, method and variant: what its seeds have in common
    seed: int
    file: str
    config: RunConfig  # with this cell's method alone
    identity: str  # two cells with the same settings, in two tables, are one run

    @property
    def name(self) -> str:
        return f"{self.row}, seed {self.seed}"


def read_matrix(path: str | Path, overrides: Sequence[str] = ()) -> Matrix:
    """Read a benchmark's file; `key=value` sets its keys: `seeds=[0,1]`, `set.train.epochs=1`,
    `configs.didemo=null` leaves one out.

    Raises:
        ConfigError: one line naming the file, the key and what would be right.
    """
    try:
        return _typed(load(Path(path), overrides))
    except ConfigError as error:
        raise ConfigError(_after(path, error)) from None


def cells(matrix: Matrix) -> list[Cell]:
    """Every cell of every table, each read and checked as its config would be by itself.

    Raises:
        ConfigError: one line naming the cell.
    """
    found = []
    for title, table in matrix.tables.items():
        for config, (variant, over) in product(_configs(matrix, table), (table.variants or {"": {}}).items()):
            base = [*_dotlist(matrix.set), *_dotlist(matrix.configs[config].set), *_dotlist(over)]
            for method in _methods(matrix, table, title, config):
                row = " ".join(part for part in (f"{title}: {config}", method, variant) if part)
                for seed in table.seeds or matrix.seeds:
                    own = [f"method.name={method}", f"seed={seed}"]
                    found.append(_cell(matrix, row, config, seed, [*base, *own]))
    if not found:
        raise ConfigError("tables: no cell is left: each needs a config and a method")
    return found


def _cell(matrix: Matrix, row: str, config: str, seed: int, overrides: list[str]) -> Cell:
    file = matrix.configs[config].file
    places = [f"output={matrix.output}/{config}", f"mlflow.uri={json.dumps(matrix.mlflow.uri)}"]
    try:
        config = read_config(file, [*overrides, *places])
    except ConfigError as error:
        raise ConfigError(f"{row}: {error}") from None
    return Cell(row, seed, file, config, fingerprint(config.model_dump(exclude={"mlflow"})))


def _methods(matrix: Matrix, table: Table, title: str, config: str) -> Sequence[str]:
    """The table's, else what the config compares."""
    if table.methods is not None:
        return table.methods
    part = matrix.configs[config]
    try:
        read = read_config(part.file, [*_dotlist(matrix.set), *_dotlist(part.set)])
    except ConfigError as error:
        raise ConfigError(f"{title}: {config}: {error}") from None
    return [run.name for run in read.methods]


def _configs(matrix: Matrix, table: Table) -> list[str]:
    """Those of the table that are not left out."""
    return [
        name
        for name in (matrix.configs if table.configs is None else table.configs)
        if name in matrix.configs
    ]


def _typed(raw: dict[str, Any]) -> Matrix:
    configs, tables = mapping(raw.get("configs"), "configs"), mapping(raw.get("tables"), "tables")
    known = [str(name) for name in configs]
    raw = dict(raw) | {
        "configs": {str(n): _section(Part, p, f"configs.{n}") for n, p in configs.items() if p is not None},
        "tables": {str(n): _table(t, f"tables.{n}", known) for n, t in tables.items() if t is not None},
    }
    raw["set"] = _settings(raw.get("set"), "set")
    try:
        matrix = Matrix(**raw)
    except ValidationError as error:
        raise ConfigError(first_mistake(error, Matrix)) from None
    for key, left in (("configs", matrix.configs), ("tables", matrix.tables)):
        if not left:
            raise ConfigError(f"{key}: none given")
    return matrix


def _table(raw: object, key: str, known: list[str]) -> Table:
    raw = mapping(raw, key)
    variants = mapping(raw.get("variants"), f"{key}.variants")
    raw["variants"] = {
        str(name): _settings(over, f"{key}.variants.{name}") for name, over in variants.items()
    }
    table = _section(Table, raw, key)
    for name in table.configs or ():
        if name not in known:
            raise ConfigError(unknown(f"{key}.configs", name, known, "config"))
    return table


def _section(kind: type[Section], raw: object, key: str) -> Any:  # noqa: ANN401 - the kind given
    raw = mapping(raw, key)
    if "set" in kind.model_fields:
        raw["set"] = _settings(raw.get("set"), f"{key}.set")
    try:
        return kind(**{str(name): value for name, value in raw.items()})
    except ValidationError as error:
        raise ConfigError(first_mistake(error, kind, f"{key}.")) from None


def _settings(raw: object, key: str) -> Settings:
    """Flat, and without what the benchmark decides itself."""
    flat = dict(_flat(mapping(raw, key)))
    for name in flat:
        if any(name == ours or name.startswith(f"{ours}.") for ours in OURS):
            raise ConfigError(f"{key}.{name}: the benchmark decides this itself; leave it out")
    return flat


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and value
        pairs += _flat(value, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", value)]
    return pairs


def _dotlist(settings: Settings) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]


def _after(path: str | Path, error: ConfigError) -> str:
    """The file in front, unless the message names it already."""
    said = str(error)
    return said if said.startswith(str(path)) or "is not an override" in said else f"{path}: {said}"
