"""A benchmark's rounds on disk: the one that is going on, and what all before it found.

A round is the whole matrix, once, with one code: `OUTPUT/round.json` says which one it is, so that the same
command goes on with it, and `OUTPUT/history/ID.json` what it found. The cells of a round carry its label as
their `run=`: a cell is finished or not by its settings, data and label, and the label is the code's hash,
with the time after it where a rerun was forced.
"""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.matrix.scheduler import Outcome
from vopcore.config import Cell, ConfigError, fingerprint

Row = dict[str, Any]


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


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Refuse a second benchmark in the same folder, as when a scheduled one meets the one before."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"output: cannot write to {output}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"output: another benchmark is running in {output}; wait for its end") from None
        yield


def begin(output: Path, code: str, cells: Sequence[Cell], rerun: bool) -> Round:
    """The round to run now: the one that was interrupted, or the same again, or a new one."""
    said = output / "round.json"
    last = Round(**json.loads(said.read_text())) if said.is_file() else None
    matrix = fingerprint(sorted(cell.identity for cell in cells))
    going_on = last is not None and not last.ended and (last.code, last.cells) == (code, matrix)
    if going_on and last.forced >= rerun:
        return last
    label = last.label if last is not None and last.code == code else code
    if rerun:
        label = f"{code}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    now = Round(label, code, matrix, forced=rerun)
    _write(said, asdict(now))
    return now


def end(output: Path, now: Round, version: str, cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> Row:
    """Keep what the round found; returns it as later rounds read it."""
    found = {outcome.cell.identity: outcome for outcome in outcomes}
    record = {
        "id": now.id,
        "code_hash": now.code,
        "code_version": version,
        "ended": datetime.now(UTC).isoformat(timespec="microseconds"),
        "cells": [_row(output, cell, found[cell.identity]) for cell in cells],
    }
    (output / "history").mkdir(exist_ok=True)
    _write(output / "history" / f"{now.id}.json", record)
    _write(output / "round.json", asdict(replace(now, ended=True)))
    return record


def history(output: Path) -> list[Row]:
    """What the rounds found, oldest first."""
    records = [json.loads(file.read_text()) for file in (output / "history").glob("*.json")]
    return sorted(records, key=lambda record: record["ended"])


def _row(output: Path, cell: Cell, outcome: Outcome) -> Row:
    row = {"row": cell.row, "seed": cell.seed, "data_hash": outcome.data_hash}
    if outcome.result is None:
        return row | {"state": "failed", "reason": outcome.failure}
    folder = Path(outcome.cell.config.output).relative_to(output)
    return row | {
        "state": "before" if outcome.before else "finished",
        "key": outcome.result["key"],
        "run_id": outcome.result["run_id"],
        "predictions": f"{folder}/results/{outcome.result['key']}.parquet",
        "metrics": outcome.result["metrics"],
    }


def _write(file: Path, value: Any) -> None:  # noqa: ANN401 - anything JSON can say
    partial = file.with_name(f"{file.name}.part")
    partial.write_text(json.dumps(value, indent=1))
    partial.rename(file)
