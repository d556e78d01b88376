"""Tuned on x tested on: each number less what the frozen CLIP finds of the same queries."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.report import predicted

from pipelines.matrix.transfers import transfer_matrix
from pipelines.reports.transfer import matrix_rows

# of each method, tuned on a: what it finds of a's and of b's test split, a list of ranks for each seed
RANKS = {
    "zero_shot": {"a": [[1, 2, 3, 1]], "b": [[1, 1, 9, 9, 9, 1]]},
    "vop": {"a": [[1, 1, 1, 2], [1, 1, 1, 1]], "b": [[1, 1.5, 9, 9, 9, 9], [1, 1, 9, 9, 9, 9]]},
}


def record(output: Path) -> dict:
    """A round, with the predictions of every cell."""
    listed = []
    for method, ranks in RANKS.items():
        for seed in range(len(ranks["a"])):
            files = {name: f"{method}-{seed}.{name}.parquet" for name in ranks}
            for name, file in files.items():
                pq.write_table(predicted(ranks[name][seed]), output / file)
            metrics = {"t2v/R1": recall(ranks["a"][seed]), "transfer/b/t2v/R1": recall(ranks["b"][seed])}
            listed.append(
                {
                    "row": f"t: a {method}",
                    "seed": seed,
                    "method": method,
                    "tuned_on": "a",
                    "variant": "",
                    "key": f"{method}-{seed}",
                    "metrics": metrics,
                    "predictions": files["a"],
                    "transfers": {"b": files["b"]},
                }
            )
    # in a second table too: the same run, to be counted once
    listed.append(listed[-1] | {"row": "u: a vop"})
    listed.append({"row": "t: a full", "seed": 0, "method": "full", "tuned_on": "a", "state": "failed"})
    return {"cells": listed}


def recall(ranks: list[float]) -> float:
    """R@1 in percent; a tie of two counts a half."""
    return 100 * float(np.mean([{1: 1.0, 1.5: 0.5}.get(rank, 0.0) for rank in ranks]))


def test_each_change_is_the_mean_over_seeds_less_zero_shot_and_lies_in_its_interval(tmp_path):
    found = {(row.method, row.tested_on): row for row in transfer_matrix(tmp_path, record(tmp_path), 0.5)}
    assert len(found) == 4
    for split in ("a", "b"):
        zero_shot, vop = found["zero_shot", split], found["vop", split]
        wanted = np.mean([recall(ranks) for ranks in RANKS["vop"][split]])
        assert zero_shot.change is None
        assert zero_shot.recall == pytest.approx(recall(RANKS["zero_shot"][split][0]))
        assert vop.recall == pytest.approx(wanted)
        assert vop.change == pytest.approx(wanted - zero_shot.recall)
        assert vop.low < vop.change < vop.high


def test_the_matrix_has_a_line_per_method_and_a_column_per_test_split(tmp_path):
    header, frozen, vop = matrix_rows(transfer_matrix(tmp_path, record(tmp_path), 0.5))
    assert header == ("t2v R@1 less zero-shot's", "tuned on", "on a", "on b")
    assert frozen == ("zero_shot", "a", "50.0", "50.0")
    assert vop[:2] == ("vop", "a")
    assert vop[2].startswith("+37.5 (")
    assert vop[3].startswith("-20.8 (")


def test_without_the_predictions_of_zero_shot_there_is_the_recall_alone(tmp_path):
    without = record(tmp_path)
    without["cells"] = [cell for cell in without["cells"] if cell["method"] != "zero_shot"]
    (_, vop) = matrix_rows(transfer_matrix(tmp_path, without, 0.5))
    assert vop == ("vop", "a", "87.5", "29.2")


def test_a_round_in_which_no_other_split_was_searched_has_no_matrix(tmp_path):
    plain = record(tmp_path)
    plain["cells"] = [cell | {"transfers": {}} for cell in plain["cells"]]
    assert transfer_matrix(tmp_path, plain, 0.5) == []
