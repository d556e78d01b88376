"""A search for the learning rate on a real Ray Tune: what it tries, what it chooses, what it does twice."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.task import listener, small_task

from pipelines.tune.driver import RunFailedError
from pipelines.tune.search_rate import drawn_rates, search_rate
from pipelines.tune.worker import Worker
from vopcore.config.sections import Search
from vopcore.methods import METHODS
from vopcore.metrics import names
from vopcore.storage import Store


@pytest.mark.parametrize(("least", "most", "trials"), [(1e-6, 1e-2, 16), (1e-3, 2e-3, 2), (1e-5, 1.0, 7)])
def test_each_equal_part_of_the_log_range_has_one_rate_and_the_seed_draws_it(least, most, trials):
    search = Search(least=least, most=most, trials=trials)
    rates = drawn_rates(search, seed=3)
    edges = np.geomspace(least, most, trials + 1)
    counts, _ = np.histogram(rates, edges)
    assert counts.tolist() == [1] * trials
    assert drawn_rates(search, seed=3) == rates
    assert drawn_rates(search, seed=4) != rates
    assert len({rates.index(rate) for rate in sorted(rates)}) == trials


def searched_task(folder, **search):
    """`full` on the videos of `small_task`, with captions of their own and twelve of them as the val split;
    its learning rate is to be found.
    """
    task = small_task(folder)
    captions = pa.array([f"a video of {video}" for video in task.annotations["video"].to_pylist()])
    column = task.annotations.schema.get_field_index("caption")
    table = task.annotations.set_column(column, "caption", captions)
    val = table.slice(0, 24).set_column(0, "split", pa.array(["val"] * 24))

    train = task.run.train.model_copy(update={"lr": "search", "search": Search(**search), "augment": False})
    run = task.run.model_copy(update={"name": "full", "method": METHODS["full"](), "train": train})
    return replace(task, run=run, annotations=pa.concat_tables([table, val]))


def rows(found) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(found.as_csv())))


def plain_curve(task, rate: float) -> list[float]:
    """t2v R@1 on val after each epoch of the same tuning, without Ray Tune."""
    train = task.run.train.model_copy(update={"lr": rate})
    alone = replace(task, run=task.run.model_copy(update={"train": train}))
    worker = Worker(alone, listener(), torch.device("cpu"))
    tuner, batches = worker.tuner(worker.source())
    curve = []
    for _ in range(train.epochs):
        for _ in tuner.epoch(batches):
            pass
        curve.append(worker.val_numbers()[names.T2V_R1])
    return curve


def test_a_search_keeps_the_rate_that_finds_most_on_val_of_those_it_has_tuned_to_the_end(
    tmp_path, own_ray, capsys
):
    task = searched_task(tmp_path, least=1e-4, most=1e-1, trials=5)
    folder = tmp_path / "search"
    found = search_rate(task, Store(folder))

    curves = {curve.rate: curve for curve in found.curves}
    assert list(curves) == sorted(drawn_rates(task.run.train.search, task.config.seed))
    finished = [curve for curve in found.curves if curve.ending == "finished"]
    assert len(finished) >= 1
    for curve in found.curves:
        assert curve.ending in ("finished", "stopped")
        assert curve.recall == plain_curve(task, curve.rate)[: len(curve.recall)]
    assert all(len(curve.recall) == 3 for curve in finished)
    most = max(curve.recall[-1] for curve in finished)
    assert found.rate == min(curve.rate for curve in finished if curve.recall[-1] == most)

    lines = rows(found)
    assert [float(line["lr"]) for line in lines] == list(curves)
    lasts = [curve.recall[-1] for curve in found.curves]
    assert [float(line["val_t2v_R1"]) for line in lines] == pytest.approx(lasts, abs=1e-3)
    assert found.metrics[names.FOUND_RATE] == found.rate
    assert found.metrics[names.SEARCH_EPOCHS] == sum(len(curve.recall) for curve in found.curves)

    # nobody needs the state of a trial that has ended
    assert not list(folder.glob("*.pt"))
    capsys.readouterr()
    assert search_rate(task, Store(folder)) == found
    assert "not ended" not in capsys.readouterr().out


def test_a_trial_that_was_cut_short_is_told_again_and_goes_on(tmp_path, own_ray):
    task = searched_task(tmp_path, least=1e-4, most=1e-1, trials=2)
    store = Store(tmp_path / "search")
    rate = drawn_rates(task.run.train.search, task.config.seed)[0]

    # numbers that no tuning would come to: whoever tunes these epochs again would write others
    told = {"rate": rate, "recall": [12.5, 37.5], "seconds": [1.0, 2.0], "ending": ""}
    store.write("trial_000.json", json.dumps(told).encode())
    found = search_rate(task, store)
    (curve,) = (curve for curve in found.curves if curve.rate == rate)
    assert curve.recall[:2] == [12.5, 37.5]
    assert curve.seconds[:2] == [1.0, 2.0]
    assert len(curve.recall) == 3 or curve.ending == "stopped"


def test_rates_that_diverge_are_never_kept_and_a_search_of_nothing_else_fails_in_one_line(tmp_path, own_ray):
    task = searched_task(tmp_path, least=1e20, most=1e30, trials=2)
    train = task.run.train.model_copy(update={"clip_grad": None})
    task = replace(task, run=task.run.model_copy(update={"train": train}))
    message = "full: all 2 learning rates diverged; lower train.search.most"
    with pytest.raises(RunFailedError, match=message):
        search_rate(task, Store(tmp_path / "search"))
