"""A benchmark's rounds on disk: the one that is going on, and what all before it found.

A round is the whole matrix, once, with one code: `OUTPUT/round.json` says which one it is, so that the same
command goes on with it, and `OUTPUT/history/ID.json` what it found. The cells of a round carry its label as
their `run=`: a cell is finished or not by its settings, data and label, and the label is the code's hash,
with the time after it where a rerun was forced.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.experiment.results import ResultFiles
from pipelines.matrix.scheduler import Outcome
from vopcore.config import Cell, ConfigError, fingerprint
from vopcore.metrics import names
from vopcore.storage import Store

RoundRecord = dict[str, Any]  # what a round found, as its file in history/ says it
CellRecord = dict[str, Any]  # one of its `cells`


@dataclass(frozen=True)
class Round:
    """`cells`: a hash of the matrix; `forced`: begun with --rerun."""

    label: str
    code: str
    cells: str
    forced: bool = False
    ended: bool = False

    @property
    def id(self) -> str:
        return f"{self.label}-{self.cells}"


def begin(
    output: Path,
    code: str,
    cells: Sequence[Cell],
    rerun: bool,
) -> Round:
    """The round to run now: the one that was interrupted, or the same again, or a new one."""
    file = output / "round.json"
    last = Round(**_read(file)) if file.is_file() else None
    matrix = fingerprint(sorted(cell.identity for cell in cells))

    if last is not None and not last.ended:
        # The same round: what it was interrupted in goes on, unless more is asked for now.
        is_same = (last.code, last.cells) == (code, matrix)
        if is_same and last.forced >= rerun:
            return last

    label = code
    if rerun:
        label = f"{code}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    elif last is not None and last.code == code:
        label = last.label
    now = Round(label, code, matrix, forced=rerun)
    _write(file, asdict(now))
    return now


def end(
    output: Path,
    now: Round,
    version: str,
    cells: Sequence[Cell],
    outcomes: Sequence[Outcome],
) -> RoundRecord:
    """Keep what the round found; returns it as later rounds read it."""
    by_identity = {outcome.cell.identity: outcome for outcome in outcomes}
    record = {
        "id": now.id,
        "code_hash": now.code,
        "code_version": version,
        "ended": datetime.now(UTC).isoformat(timespec="microseconds"),
        "cells": [_cell_record(output, cell, by_identity[cell.identity]) for cell in cells],
    }
    _write(output / "history" / f"{now.id}.json", record)
    _write(output / "round.json", asdict(replace(now, ended=True)))
    return record


def history(output: Path) -> list[RoundRecord]:
    """What the rounds found, oldest first."""
    records = [_read(file) for file in (output / "history").glob("*.json")]
    return sorted(records, key=lambda record: record["ended"])


def _cell_record(
    output: Path,
    cell: Cell,
    outcome: Outcome,
) -> CellRecord:
    record = {
        "row": cell.row,
        "seed": cell.seed,
        "data_hash": outcome.data_hash,
        "tuned_on": cell.tuned_on,
        "method": " ".join(run.name for run in cell.config.methods),
        "variant": cell.variant,
    }
    result = outcome.result
    if result is None:
        return record | {"state": "failed", "reason": outcome.failure}

    results = Path(outcome.cell.config.output).relative_to(output) / "results"
    files = ResultFiles(results, result.key)
    tested = [names.tested_on(metric) for metric in result.metrics]
    return record | {
        "state": "before" if outcome.shown_again else "finished",
        "key": result.key,
        "run_id": result.run_id,
        "predictions": str(files.predictions),
        "transfers": {name: str(files.transfer(name)) for name in tested if name},
        "metrics": dict(result.metrics),
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError:
        raise ConfigError(f"output: {file} is damaged; delete it to go on without what it says") from None


def _write(file: Path, value: dict[str, Any]) -> None:
    Store(file.parent).write(file.name, json.dumps(value, indent=1).encode())
