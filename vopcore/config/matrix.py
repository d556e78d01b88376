"""A benchmark's YAML: tables of configs x methods x variants x seeds, read into cells before any work."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vopcore.config.identity import fingerprint, training_settings
from vopcore.config.messages import first_mistake, unknown
from vopcore.config.read import ConfigError, complete, dotlist, flat, load, mapping, read_draft
from vopcore.config.sections import (
    ConfigEntry,
    Finite,
    Location,
    MLflow,
    Name,
    Positive,
    RunConfig,
    Section,
    Share,
)

# keys that the benchmark decides for each cell: a `set` must not touch them
RESERVED = ("name", "output", "seed", "run", "stages", "compare", "method.name", "mlflow")

Settings = dict[str, Any]  # over a config's own; keys may be nested or dotted


class MatrixTable(Section):
    """One table of results: every combination of its configs, methods, variants and seeds."""

    configs: tuple[str, ...] | None = None
    """Names of `configs`; null: all."""
    methods: tuple[str, ...] | None = None
    """Names of methods; null: what each config compares."""
    variants: dict[str, Settings] = Field(default_factory=dict)
    """Settings by the name of the variant; each variant is a row of its own."""
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """Seeds; null: those of the benchmark."""


class Matrix(Section):
    """A benchmark, as its file says it."""

    name: Name
    """Name of the benchmark."""
    output: Location
    """Folder for results and for what each round measured, s3:// and gs:// too."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Seeds of every row."""
    at_once: Positive | None = None
    """Cells side by side; null: as many as the cluster has room for."""
    false_alarms: Share = 0.01
    """How often, at most, a rerun may call mere noise a regression."""
    seed_std: Finite = Field(0.5, ge=0)
    """Standard deviation between seeds, in points of R@1, assumed where no row has two seeds."""
    set: Settings = Field(default_factory=dict)
    """Settings over every config."""
    configs: dict[str, ConfigEntry]
    """Configs by name."""
    tables: dict[str, MatrixTable]
    """Tables by title."""
    mlflow: MLflow = MLflow()
    """Where numbers go."""


@dataclass(frozen=True)
class Cell:
    """One run of the matrix: exactly `pipelines/run.py` on `file` with `overrides`."""

    row: str  # table, config, method and variant: what its seeds have in common
    seed: int
    file: str
    config: RunConfig  # with this cell's method alone
    # two cells with the same settings, in two tables, are one run; empty in a draft
    identity: str = ""
    tuned_on: str = ""  # the config's name in the matrix
    variant: str = ""

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
        return _typed(load(Path(path), overrides, Matrix))
    except ConfigError as error:
        raise ConfigError(_naming_file(path, error)) from None


def cells(matrix: Matrix) -> list[Cell]:
    """Every cell of every table, each read and checked as its config would be by itself.

    Raises:
        ConfigError: one line naming the cell.
    """
    # All are drafted before the first is completed: a mistake in the last should not wait for torch.
    return [_complete_cell(draft) for draft in draft_cells(matrix)]


def draft_cells(matrix: Matrix) -> list[Cell]:
    """The cells with drafts of their configs, see `read_draft`. Raises ConfigError naming the cell."""
    listed = []
    for title, table in matrix.tables.items():
        for config in _configs(matrix, table):
            listed += _cells_of(matrix, title, table, config)
    if not listed:
        raise ConfigError("tables: no cell is left: each needs a config and a method")
    return listed


def _cells_of(
    matrix: Matrix,
    title: str,
    table: MatrixTable,
    config: str,
) -> list[Cell]:
    """The cells of one config in one table."""
    listed = []
    variants = table.variants or {"": {}}
    for variant, settings in variants.items():
        shared = matrix.set | matrix.configs[config].set | settings
        shared = _with_own_configs(matrix, config, shared)
        for method in _methods(matrix, table, title, config):
            row = " ".join(word for word in (f"{title}: {config}", method, variant) if word)
            for seed in table.seeds or matrix.seeds:
                overrides = [*dotlist(shared), f"method.name={method}", f"seed={seed}"]
                listed.append(
                    _cell(
                        matrix,
                        row,
                        config,
                        seed,
                        variant,
                        overrides,
                    )
                )
    return listed


def _with_own_configs(
    matrix: Matrix,
    config: str,
    settings: Settings,
) -> Settings:
    """In `evaluate.also`, a name of the matrix means that config, with all that is set over it here.

    A config is not tested on itself twice, so one list may be set for all of them.
    """
    named = settings.get("evaluate.also")
    if not isinstance(named, list):
        return settings

    others = []
    for name in named:
        is_own = isinstance(name, str) and name in matrix.configs
        if not is_own:
            others.append(name)
            continue
        if name == config:
            continue
        entry = matrix.configs[name]
        over = {key: value for key, value in (matrix.set | entry.set).items() if key != "evaluate.also"}
        others.append({"file": entry.file, "set": over | {"name": name}})
    return settings | {"evaluate.also": others}


def _cell(
    matrix: Matrix,
    row: str,
    name: str,
    seed: int,
    variant: str,
    overrides: list[str],
) -> Cell:
    file = matrix.configs[name].file
    places = [
        f"output={json.dumps(f'{matrix.output}/{name}')}",
        f"mlflow.uri={json.dumps(matrix.mlflow.uri)}",
    ]
    try:
        draft = read_draft(file, [*overrides, *places])
    except ConfigError as error:
        raise ConfigError(f"{row}: {error}") from None
    return Cell(
        row,
        seed,
        file,
        draft,
        tuned_on=name,
        variant=variant,
    )


def _complete_cell(draft: Cell) -> Cell:
    try:
        config = complete(draft.config, draft.file)
    except ConfigError as error:
        raise ConfigError(f"{draft.row}: {error}") from None
    return replace(draft, config=config, identity=_identity(config))


def _identity(config: RunConfig) -> str:
    """Of all that decides the numbers of a cell; a setting that its method does not read is none of it."""
    content = config.model_dump(exclude={"mlflow"})
    for run, section in zip(config.methods, content["methods"], strict=True):
        section["train"] = training_settings(run)
    return fingerprint(content)


def _methods(
    matrix: Matrix,
    table: MatrixTable,
    title: str,
    config: str,
) -> Sequence[str]:
    """The table's, else what the config compares."""
    if table.methods is not None:
        return table.methods

    entry = matrix.configs[config]
    try:
        settings = _with_own_configs(matrix, config, matrix.set | entry.set)
        run_config = read_draft(entry.file, dotlist(settings))
    except ConfigError as error:
        raise ConfigError(f"{title}: {config}: {error}") from None
    return [run.name for run in run_config.methods]


def _configs(matrix: Matrix, table: MatrixTable) -> list[str]:
    """Those of the table that are not left out."""
    names = list(matrix.configs) if table.configs is None else table.configs
    return [name for name in names if name in matrix.configs]


def _typed(raw: dict[str, Any]) -> Matrix:
    raw = dict(raw)
    configs = mapping(raw.get("configs"), "configs")
    tables = mapping(raw.get("tables"), "tables")

    raw["configs"] = {}
    for name, entry in configs.items():
        if entry is not None:  # `configs.didemo=null` leaves it out
            raw["configs"][name] = _section(ConfigEntry, entry, f"configs.{name}")

    raw["tables"] = {}
    for title, table in tables.items():
        if table is not None:
            raw["tables"][title] = _table(table, f"tables.{title}", list(configs))

    raw["set"] = _settings(raw.get("set"), "set")
    try:
        matrix = Matrix(**raw)
    except ValidationError as error:
        raise ConfigError(first_mistake(error, Matrix)) from None

    for key, entries in (("configs", matrix.configs), ("tables", matrix.tables)):
        if not entries:
            raise ConfigError(f"{key}: none given")
    return matrix


def _table(
    raw: object,
    key: str,
    known: list[str],
) -> MatrixTable:
    raw = mapping(raw, key)
    variants = mapping(raw.get("variants"), f"{key}.variants")
    raw["variants"] = {
        name: _settings(settings, f"{key}.variants.{name}") for name, settings in variants.items()
    }
    table = _section(MatrixTable, raw, key)
    for name in table.configs or ():
        if name not in known:
            raise ConfigError(unknown(f"{key}.configs", name, known, "config"))
    return table


def _section(
    kind: type[Section],
    raw: object,
    key: str,
) -> Any:  # noqa: ANN401 - the kind given
    raw = mapping(raw, key)
    if "set" in kind.model_fields:
        raw["set"] = _settings(raw.get("set"), f"{key}.set")
    try:
        return kind(**raw)
    except ValidationError as error:
        raise ConfigError(first_mistake(error, kind, f"{key}.")) from None


def _settings(raw: object, key: str) -> Settings:
    """Flat, and without what the benchmark decides itself."""
    settings = flat(mapping(raw, key))
    for name in settings:
        for reserved in RESERVED:
            if name == reserved or name.startswith(f"{reserved}."):
                raise ConfigError(f"{key}.{name}: the benchmark decides this itself; leave it out")
    return settings


def _naming_file(path: str | Path, error: ConfigError) -> str:
    """The file in front, unless the message names it already."""
    message = str(error)
    is_named = message.startswith(str(path)) or "is not an override" in message
    return message if is_named else f"{path}: {message}"
