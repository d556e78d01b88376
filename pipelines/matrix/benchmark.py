"""One round of a benchmark: run what is not finished, compare with the rounds before, report."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipelines import track
from pipelines.cluster import machines
from pipelines.cluster.start import start_ray
from pipelines.command.exit_codes import DONE, FAILED, ended
from pipelines.experiment.kept_output import KeptOutput, kept_output
from pipelines.experiment.provenance import code_hash, code_version
from pipelines.experiment.runs import coverage, print_where_to_look, try_to_deliver
from pipelines.matrix import rounds, tables
from pipelines.matrix.groups import CellGroup, check, grouped
from pipelines.matrix.regressions import RowChange, compare_rounds
from pipelines.matrix.rounds import Round, RoundRecord
from pipelines.matrix.scheduler import Outcome, needs, run_cells
from pipelines.matrix.transfers import transfer_matrix
from pipelines.reports.changes import ShownChange, changes_page
from pipelines.reports.tables import TextTable
from pipelines.reports.transfer import matrix_rows
from vopcore.config import Cell, Matrix, cells
from vopcore.metrics import names
from vopcore.storage import Store

REGRESSION = 4  # the exit code


def run_benchmark(
    matrix: Matrix,
    rerun: bool,
    source: Path,
) -> int:
    """Run a round of `matrix`, which was read from `source`; returns the exit code."""
    with kept_output(matrix.output) as kept:
        matrix = matrix.model_copy(update={"output": str(kept.folder)})
        every_cell = cells(matrix)
        for group in grouped(matrix, every_cell, "", kept.bucket):
            check(group)

        with kept.said():
            return _run_round(
                matrix,
                every_cell,
                kept,
                rerun,
                source,
            )


def _run_round(
    matrix: Matrix,
    every_cell: Sequence[Cell],
    kept: KeptOutput,
    rerun: bool,
    source: Path,
) -> int:
    output = kept.folder
    round_ = rounds.begin(output, code_hash(), every_cell, rerun)
    groups = grouped(matrix, every_cell, round_.label, kept.bucket)
    experiment = matrix.mlflow.experiment or matrix.name
    store = track.open_or_wait(groups[0].config.mlflow.uri, experiment, output)

    outcomes = _run(
        matrix,
        every_cell,
        groups,
        round_,
        kept,
    )
    record = rounds.end(
        output,
        round_,
        code_version(),
        every_cell,
        outcomes,
    )
    earlier = [one for one in rounds.history(output) if one["id"] != round_.id]
    changes = compare_rounds(
        output,
        record,
        earlier,
        matrix.false_alarms,
        matrix.seed_std,
    )

    transfer_rows = _transfer_rows(output, matrix, record)
    print(_summary(record, changes, transfer_rows))
    files = _write_comparison(
        output,
        matrix,
        record,
        changes,
        transfer_rows,
    )
    _log_round(
        store,
        round_,
        files,
        source,
        changes,
    )
    _deliver(groups, store)
    experiments = {group.config.mlflow.experiment or group.config.name for group in groups}
    print_where_to_look(store, sorted(experiments), kept)
    return _exit_code(record, changes)


def _run(
    matrix: Matrix,
    every_cell: Sequence[Cell],
    groups: Sequence[CellGroup],
    round_: Round,
    kept: KeptOutput,
) -> list[Outcome]:
    """Every cell to its end, with a line for each."""
    placed = [cell for group in groups for cell in group.cells]
    largest = max(placed, key=lambda cell: needs(cell)["CPU"])
    os.environ.setdefault(
        "RAY_worker_maximum_startup_concurrency",
        "32",
    )  # else it warns of small actors
    start_ray(largest.config)
    for group in groups:
        machines.check_machines(group.config)
        machines.check_shared(group.config)

    num_cells = len({cell.identity for cell in every_cell})
    in_two_tables = len(every_cell) - num_cells
    note = f" ({len(every_cell)} with those that stand in two tables)" if in_two_tables else ""
    print(f"{matrix.name}: {num_cells} cells{note}, round {round_.id}", flush=True)

    outcomes = []
    for outcome in run_cells(groups, Path(matrix.output) / "logs", matrix.at_once):
        outcomes.append(outcome)
        print(f"{_line(outcome)} ({len(outcomes)}/{num_cells})", flush=True)
        kept.keep()
    return outcomes


def _line(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"FAILED    {outcome.cell.name}: {outcome.failure}"
    state = "before   " if outcome.shown_again else "finished "
    recall = outcome.result.metrics[names.T2V_R1]
    return f"{state} {outcome.cell.name}: t2v R@1 {recall:.1f}"


def _transfer_rows(
    output: Path,
    matrix: Matrix,
    record: RoundRecord,
) -> tables.Lines:
    """Tuned on x tested on, where other configs' test splits were searched; else nothing."""
    found = transfer_matrix(output, record, matrix.seed_std)
    return matrix_rows(found) if found else []


def _summary(
    record: RoundRecord,
    changes: Sequence[RowChange],
    transfer_rows: tables.Lines,
) -> str:
    """What is printed at the end: the cells, how they do elsewhere, and what has changed."""
    cells = [tables.aligned(tables.cell_rows(record)), *_coverage(record)]
    blocks = ["\n".join(cells), tables.summary(record)]
    if transfer_rows:
        blocks.append(tables.aligned(transfer_rows))
    blocks.append(_heading(changes))
    if any(row.baseline for row in changes):
        blocks.append(tables.aligned(tables.change_rows(changes)))
    return "\n" + "\n\n".join(blocks)


def _coverage(record: RoundRecord) -> list[str]:
    """A line for each test split of which some videos were not found."""
    first_rows: dict[str, str] = {}
    for cell in record["cells"]:
        line = coverage(cell["metrics"]) if "metrics" in cell else None
        if line:
            first_rows.setdefault(line, cell["row"])
    return [f"{line} ({row})" for line, row in first_rows.items()]


def _heading(changes: Sequence[RowChange]) -> str:
    baselines = sorted({row.baseline for row in changes if row.baseline})
    if not baselines:
        return "There is no earlier round to compare with."
    return f"Against round {', '.join(baselines)}:"


def _write_comparison(
    output: Path,
    matrix: Matrix,
    record: RoundRecord,
    changes: Sequence[RowChange],
    transfer_rows: tables.Lines,
) -> list[Path]:
    """The same as comparison.md, comparison.json and comparison.html; returns the files."""
    ended_at = record["ended"][:16].replace("T", " ")
    page = [
        f"# {matrix.name}, round {record['id']}",
        f"{ended_at} UTC, code {record['code_version']}.",
        f"{tables.summary(record)}.",
        f"## What has changed\n\n{_heading(changes)}",
        tables.markdown(tables.change_rows(changes)),
        f"The chance that noise alone makes any row `worse` is below {matrix.false_alarms:.0%}: paired over"
        " queries and seeds, Holm's correction over rows.",
        f"## Cells\n\n{tables.markdown(tables.cell_rows(record))}",
    ]
    if transfer_rows:
        page.append(f"## Tuned on, tested on\n\n{tables.markdown(transfer_rows)}")
    rows = {"round": record["id"], "rows": [asdict(row) for row in changes]}

    store = Store(output)
    store.write("comparison.md", ("\n\n".join(page) + "\n").encode())
    store.write("comparison.json", json.dumps(rows, indent=1).encode())
    store.write(
        "comparison.html",
        _comparison_page(matrix, record, changes, transfer_rows).encode(),
    )
    return [output / f"comparison.{ending}" for ending in ("md", "json", "html")]


def _comparison_page(
    matrix: Matrix,
    record: RoundRecord,
    changes: Sequence[RowChange],
    transfer_rows: tables.Lines,
) -> str:
    ended_at = record["ended"][:16].replace("T", " ")
    shown = [
        ShownChange(row.row, row.word, row.baseline, row.change.change, row.change.low, row.change.high)
        for row in changes
        if row.change is not None
    ]
    change_header, *change_rows = tables.change_rows(changes)
    cell_header, *cell_rows = tables.cell_rows(record)
    shown_tables = [TextTable("Cells", cell_header, cell_rows)]
    if transfer_rows:
        transfer_header, *lines = transfer_rows
        shown_tables.append(TextTable("Tuned on, tested on", transfer_header, lines))
    return changes_page(
        f"{matrix.name}, round {record['id']}",
        f"{ended_at} UTC, code {record['code_version']}. {tables.summary(record)}.",
        shown,
        TextTable("What has changed", change_header, change_rows),
        shown_tables,
        matrix.false_alarms,
    )


def _log_round(
    store: track.RunStore,
    round_: Round,
    files: Sequence[Path],
    source: Path,
    changes: Sequence[RowChange],
) -> None:
    """A run of the benchmark's own experiment for each round."""
    settings = {"round": round_.id, "label": round_.label}
    run_id = track.start_run(
        store,
        round_.id,
        f"round {round_.label}",
        settings,
        {"kind": "benchmark"},
    )
    track.log_files(store, run_id, files)
    track.log_config(store, run_id, source)
    track.log_metrics(store, run_id, tables.mlflow_metrics(changes))
    track.end_run(store, run_id)


def _deliver(groups: Sequence[CellGroup], benchmark_store: track.RunStore) -> None:
    """Bring to MLflow what it did not take while cells ran."""
    try_to_deliver(benchmark_store)
    for group in groups:
        mlflow = group.config.mlflow
        folder = Path(group.config.output)
        if track.waiting(str(folder / "mlflow_waiting")):
            experiment = mlflow.experiment or group.config.name
            try_to_deliver(track.open_or_wait(mlflow.uri, experiment, folder))


def _exit_code(record: RoundRecord, changes: Sequence[RowChange]) -> int:
    worse = [row.row for row in changes if row.word == "worse"]
    if worse:
        reason = f"less is found than the last time: {'; '.join(worse)}"
        return ended(REGRESSION, reason, "regression")

    failed = [f"{cell['row']}, seed {cell['seed']}" for cell in record["cells"] if cell["state"] == "failed"]
    if failed:
        return ended(FAILED, f"failed: {'; '.join(failed)}")
    return DONE
