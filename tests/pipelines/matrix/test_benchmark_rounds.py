"""Which round a command goes on with, which it begins, and what a round is held against."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.report import predicted

from pipelines.experiment.provenance import code_hash
from pipelines.experiment.results import RunResult
from pipelines.matrix import rounds
from pipelines.matrix.regressions import compare_rounds
from pipelines.matrix.scheduler import Outcome
from vopcore.config import Cell, RunConfig
from vopcore.config.sections import Data


def cell(row: str = "t: a vop", seed: int = 0, output: str = "/out") -> Cell:
    config = RunConfig(name="a", output=output, data=Data(dataset="folder", root="/"), methods=())
    return Cell(row, seed, "a.yaml", config, f"{row}{seed}")


def finished(cell: Cell, recall: float = 30.0, key: str = "", data: str = "d") -> Outcome:
    metrics = {"t2v/R1": recall, "t2v/R1_low": recall - 2, "t2v/R1_high": recall + 2}
    result = RunResult("vop", cell.seed, key or f"{cell.row[3:]}-{cell.seed}", "r", metrics)
    return Outcome(cell, data, result)


def test_an_interrupted_round_goes_on_and_one_that_ended_is_shown_again(tmp_path):
    first = rounds.begin(tmp_path, "c0de", [cell()], rerun=False)
    assert rounds.begin(tmp_path, "c0de", [cell()], rerun=False) == first
    rounds.end(tmp_path, first, "v", [cell()], [finished(cell(output=str(tmp_path)))])
    assert rounds.begin(tmp_path, "c0de", [cell()], rerun=False).id == first.id


def test_a_forced_rerun_has_a_new_label_and_goes_on_with_it_when_it_was_interrupted(tmp_path):
    first = rounds.begin(tmp_path, "c0de", [cell()], rerun=False)
    forced = rounds.begin(tmp_path, "c0de", [cell()], rerun=True)
    assert forced.label != first.label
    assert rounds.begin(tmp_path, "c0de", [cell()], rerun=True) == forced
    assert rounds.begin(tmp_path, "c0de", [cell()], rerun=False) == forced
    rounds.end(tmp_path, forced, "v", [cell()], [finished(cell(output=str(tmp_path)))])
    assert rounds.begin(tmp_path, "c0de", [cell()], rerun=False).id == forced.id
    assert rounds.begin(tmp_path, "c0de", [cell()], rerun=True).forced


def test_other_code_runs_everything_anew_and_other_cells_only_what_is_new(tmp_path):
    first = rounds.begin(tmp_path, "c0de", [cell()], rerun=False)
    assert rounds.begin(tmp_path, "0ther", [cell()], rerun=False).label != first.label
    back = rounds.begin(tmp_path, "c0de", [cell(), cell(seed=1)], rerun=False)
    assert (back.label, back.id != first.id) == (first.label, True)


def record(output: Path, name: str, cells: dict[str, list[float]], data: str = "d", **ranks) -> dict:
    """A round in which each row found `recall` for its seeds, with predictions where there are ranks."""
    every = [cell(row, seed, str(output)) for row, recalls in cells.items() for seed in range(len(recalls))]
    outcomes = [
        finished(one, cells[one.row][one.seed], f"{one.row[3:].replace(' ', '_')}-{one.seed}-{name}", data)
        for one in every
    ]
    (output / "results").mkdir(exist_ok=True)
    for outcome in outcomes:
        if ranks:
            file = output / "results" / f"{outcome.result.key}.parquet"
            pq.write_table(predicted(list(ranks["ranks"])), file)
    return rounds.end(output, rounds.Round(name, name, "m"), "v", every, outcomes)


def words(output: Path, now: dict) -> dict[str, str]:
    earlier = [one for one in rounds.history(output) if one["id"] != now["id"]]
    return {one.row: one.word for one in compare_rounds(output, now, earlier, 0.01, 0.5)}


def test_each_row_is_held_against_the_latest_round_that_has_it(tmp_path):
    record(tmp_path, "1", {"t: a vop": [30.0, 31.0], "t: a full": [40.0, 41.0]})
    record(tmp_path, "2", {"t: a vop": [10.0, 11.0]})
    now = record(tmp_path, "3", {"t: a vop": [10.0, 11.0], "t: a full": [40.0, 41.0], "t: a new": [1.0]})
    found = {one.row: one for one in compare_rounds(tmp_path, now, rounds.history(tmp_path)[:2], 0.01, 0.5)}
    assert found["t: a vop"].baseline == "2-m"
    assert found["t: a full"].baseline == "1-m"
    assert found["t: a vop"].word == "no change"
    assert found["t: a new"].word == "new"


def test_predictions_of_both_rounds_are_compared_query_by_query(tmp_path):
    """Of 100 queries each run finds 60. Unpaired, that leaves +-14 points open; paired, nothing has changed
    but two queries.
    """
    ranks = np.where(np.arange(100) < 60, 1.0, 2.0)
    record(tmp_path, "1", {"t: a vop": [60.0]}, ranks=ranks)
    ranks[[0, 60]] = ranks[[60, 0]]
    now = record(tmp_path, "2", {"t: a vop": [60.0]}, ranks=ranks)
    (row,) = compare_rounds(tmp_path, now, rounds.history(tmp_path)[:1], 0.01, 0.0)
    assert row.change.change == 0
    assert row.change.high == pytest.approx(-row.change.low)
    assert 1 < row.change.high < 5
    ranks[20:60] = 2.0
    worse = record(tmp_path, "3", {"t: a vop": [20.0]}, ranks=ranks)
    assert words(tmp_path, worse) == {"t: a vop": "worse"}


def test_predictions_of_other_queries_or_data_are_not_compared(tmp_path):
    record(tmp_path, "1", {"t: a vop": [90.0]}, data="old")
    assert words(tmp_path, record(tmp_path, "2", {"t: a vop": [10.0]})) == {"t: a vop": "other data"}


def test_a_row_that_stands_in_two_tables_is_judged_once(tmp_path):
    twin = {"t: a vop": [30.0], "u: a vop": [30.0]}
    record(tmp_path, "1", twin)
    assert len(words(tmp_path, record(tmp_path, "2", twin))) == 1


def test_the_code_hash_sees_code_but_neither_comments_nor_what_only_shows_numbers(tmp_path):
    for name in ("vopcore/loss.py", "pipelines/work.py", "pipelines/report.py", "vopcore/metrics/verdict.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    first = code_hash(tmp_path)
    (tmp_path / "vopcore/loss.py").write_text("x  =  1  # one\n")
    (tmp_path / "pipelines/report.py").write_text("x = 2\n")
    (tmp_path / "vopcore/metrics/verdict.py").write_text("x = 2\n")
    assert code_hash(tmp_path) == first
    (tmp_path / "vopcore/loss.py").write_text("x = 2\n")
    second = code_hash(tmp_path)
    (tmp_path / "pipelines/work.py").rename(tmp_path / "pipelines/task.py")
    assert len({first, second, code_hash(tmp_path)}) == 3


def test_what_a_round_found_is_on_disk_with_its_failures(tmp_path):
    now = rounds.begin(tmp_path, "c0de", [cell()], rerun=False)
    rounds.end(tmp_path, now, "v", [cell()], [Outcome(cell(output=str(tmp_path)), failure="out of memory")])
    (kept,) = rounds.history(tmp_path)
    assert kept["cells"][0] | {"data_hash": ""} == {
        "row": "t: a vop",
        "seed": 0,
        "data_hash": "",
        "tuned_on": "",
        "method": "",
        "variant": "",
        "state": "failed",
        "reason": "out of memory",
    }
    assert json.loads((tmp_path / "round.json").read_text())["ended"]
