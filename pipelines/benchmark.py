"""Run a matrix of configs, methods, variants and seeds, and say what has changed since the last time.

    python pipelines/benchmark.py conf/benchmarks/quick.yaml
    python pipelines/benchmark.py conf/benchmarks/vop_paper.yaml configs.lsmdc=null set.train.epochs=1

Cells that are finished with the same settings, data and code are shown again, failed ones are tried again,
--rerun runs all anew. Interrupt it anywhere: the same command goes on. In `output`, history/ keeps what each
round found, comparison.md and .json say what has changed, logs/ what each cell said.

Exit codes: 0 done, 1 a cell failed, 2 something to put right in the config or the data, 4 a cell finds less
than the last time, by more than noise; 130 interrupted.
"""

import argparse
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout, also where another one is installed

from pipelines import track
from pipelines.cluster import machines
from pipelines.cluster.start import start_ray
from pipelines.command.exit_codes import Arguments, ended
from pipelines.command.secrets import hides_secrets
from pipelines.deliver import try_to_deliver
from pipelines.experiment.provenance import code_hash, code_version
from pipelines.matrix import rounds, tables
from pipelines.matrix.groups import World, check, worlds
from pipelines.matrix.regressions import Compared, compare_rounds
from pipelines.matrix.scheduler import Outcome, needs, run_cells
from vopcore.config import Cell, Matrix, cells, read_matrix

CLI = Arguments(
    prog="pipelines/benchmark.py",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
    epilog="Every key of the file can be overridden: seeds=[0,1,2], output=outputs/other, at_once=4,\n"
    "set.KEY=VALUE for all configs, configs.NAME.set.data.root=/data/msrvtt for one, tables.NAME=null\n"
    "leaves a table out, configs.NAME=null a config.",
)
CLI.add_argument("matrix", help="a YAML file, such as conf/benchmarks/quick.yaml")
CLI.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
CLI.add_argument("--rerun", action="store_true", help="run finished cells anew")


@hides_secrets
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is stopped ends like Ctrl-C
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        args = CLI.parse_intermixed_args(argv)
        matrix = read_matrix(args.matrix, args.overrides)
        with rounds.alone(Path(matrix.output)):
            return benchmark(matrix, args.rerun, Path(args.matrix))
    except ValueError as error:
        return ended(2, f"{error}")
    except KeyboardInterrupt:
        return ended(130, "the same command goes on from here", "interrupted")
    except Exception as error:  # a mistake of ours, or a cluster that is gone
        traceback.print_exc()
        return ended(1, f"{type(error).__name__}: {error}")


def benchmark(matrix: Matrix, rerun: bool, source: Path) -> int:
    """Run what is not finished, compare with the rounds before, report; returns the exit code."""
    every, output = cells(matrix), Path(matrix.output)
    code = code_hash()
    for world in worlds(matrix, every, ""):
        check(world)
    now = rounds.begin(output, code, every, rerun)
    places = worlds(matrix, every, now.label)
    store = track.open_or_wait(places[0].config.mlflow.uri, matrix.mlflow.experiment or matrix.name, output)
    outcomes = _run(matrix, every, places, now)
    record = rounds.end(output, now, code_version(), every, outcomes)
    earlier = [one for one in rounds.history(output) if one["id"] != now.id]
    compared = compare_rounds(output, record, earlier, matrix.false_alarms, matrix.seed_std)
    print(_shown(record, compared))
    _log(store, now, _written(output, matrix, record, compared), compared, source)
    _deliver(places, store)
    print(f"\nCompare the runs in a browser:\n  {_browse(store.uri)}")
    names = sorted({world.config.mlflow.experiment or world.config.name for world in places})
    print(f"or on one page:\n  python pipelines/report.py {' '.join(names)} --uri {shlex.quote(store.uri)}")
    worse = [one.row for one in compared if one.word == "worse"]
    failed = [f"{cell['row']}, seed {cell['seed']}" for cell in record["cells"] if cell["state"] == "failed"]
    if worse:
        return ended(4, f"less is found than the last time: {'; '.join(worse)}", "regression")
    return ended(1, f"failed: {'; '.join(failed)}") if failed else 0


def _run(matrix: Matrix, every: Sequence[Cell], places: Sequence[World], now: rounds.Round) -> list[Outcome]:
    """Every cell to its end, with a line for each."""
    largest = max((cell for world in places for cell in world.cells), key=lambda cell: needs(cell)["CPU"])
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "32")  # else it warns of small actors
    start_ray(largest.config)
    for world in places:
        machines.check_machines(world.config)
        machines.check_shared(world.config)
    single = {cell.identity for cell in every}
    twice = f" ({len(every)} with those that stand in two tables)" if len(single) < len(every) else ""
    print(f"{matrix.name}: {len(single)} cells{twice}, round {now.id}", flush=True)
    outcomes = []
    for outcome in run_cells(places, Path(matrix.output) / "logs", matrix.at_once):
        outcomes.append(outcome)
        print(f"{_line(outcome)} ({len(outcomes)}/{len(single)})", flush=True)
    return outcomes


def _line(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"FAILED    {outcome.cell.name}: {outcome.failure}"
    recall, word = outcome.result["metrics"]["t2v/R1"], "before   " if outcome.before else "finished "
    return f"{word} {outcome.cell.name}: t2v R@1 {recall:.1f}"


def _shown(record: rounds.Row, compared: Sequence[Compared]) -> str:
    changes = _heading(compared)
    if any(one.against for one in compared):
        changes += "\n\n" + tables.aligned(tables.change_rows(compared))
    return f"\n{tables.aligned(tables.cell_rows(record))}\n\n{tables.summary(record)}\n\n{changes}"


def _heading(compared: Sequence[Compared]) -> str:
    against = sorted({one.against for one in compared if one.against})
    return f"Against round {', '.join(against)}:" if against else "There is no earlier round to compare with."


def _written(
    output: Path, matrix: Matrix, record: rounds.Row, compared: Sequence[Compared]
) -> tuple[Path, Path]:
    """The same as comparison.md and comparison.json."""
    page = [
        f"# {matrix.name}, round {record['id']}",
        f"{record['ended'][:16].replace('T', ' ')} UTC, code {record['code_version']}.",
        f"{tables.summary(record)}.",
        f"## What has changed\n\n{_heading(compared)}",
        tables.markdown(tables.change_rows(compared)),
        f"The chance that noise alone makes any row `worse` is below {matrix.false_alarms:.0%}: paired over"
        " queries and seeds, Holm's correction over rows.",
        f"## Cells\n\n{tables.markdown(tables.cell_rows(record))}",
    ]
    files = output / "comparison.md", output / "comparison.json"
    files[0].write_text("\n\n".join(page) + "\n")
    files[1].write_text(
        json.dumps({"round": record["id"], "rows": [asdict(one) for one in compared]}, indent=1)
    )
    return files


def _log(
    store: track.RunStore,
    now: rounds.Round,
    files: Sequence[Path],
    compared: Sequence[Compared],
    source: Path,
) -> None:
    """A run of the benchmark's own experiment for each round."""
    settings = {"round": now.id, "label": now.label}
    run_id = track.start_run(store, now.id, f"round {now.label}", settings, {"kind": "benchmark"})
    track.log_files(store, run_id, files)
    track.log_config(store, run_id, source)
    track.log_metrics(store, run_id, tables.means(compared))
    track.end_run(store, run_id)


def _deliver(places: Sequence[World], own: track.RunStore) -> None:
    """What MLflow did not take while cells ran."""
    try_to_deliver(own)
    for world in places:
        mlflow = world.config.mlflow
        folder = Path(world.config.output)
        if track.waiting(str(folder / "mlflow_waiting")):
            try_to_deliver(track.open_or_wait(mlflow.uri, mlflow.experiment or world.config.name, folder))


def _browse(uri: str) -> str:
    return uri if uri.startswith("http") else track.serve_command(uri)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
