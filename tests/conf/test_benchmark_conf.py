"""The benchmarks that ship: every cell is read, fits its model, and the papers' tables are all there."""

import functools

import pytest
import torch
from support import ROOT

from pipelines.experiment import prepare
from pipelines.experiment.runs import settings
from pipelines.matrix.groups import check, grouped
from pipelines.reports.published import beside, is_same_experiment, published
from pipelines.track import TrackedRun
from vopcore.clip import blank
from vopcore.config import RunConfig, cells, read_matrix
from vopcore.methods import tune

FILES = sorted((ROOT / "conf/benchmarks").glob("*.yaml"))
PAPERS = {"vop_paper": "vop", "cma_paper": "cross_modal_adapter"}


@functools.cache
def read(name: str):
    """The matrix as if all its data were there, and its cells."""
    path = ROOT / f"conf/benchmarks/{name}.yaml"
    configs = read_matrix(path).configs
    matrix = read_matrix(path, [f"configs.{config}.set.data.root={ROOT}" for config in configs])
    return matrix, cells(matrix)


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_cell_of_a_benchmark_that_ships_is_read_and_fits_its_model(path):
    matrix, found = read(path.stem)
    assert matrix.name == path.stem
    assert len({cell.name for cell in found}) == len(found)
    for group in grouped(matrix, found, "label"):
        if group.config.data.dataset in ("folder", "msrvtt_9k") or group.config.video.frames > 12:
            prepare.check_model(group.config)  # the others have the same methods and frames


def as_run(config: RunConfig) -> TrackedRun:
    """What a finished cell would say of itself in MLflow."""
    (run,) = config.methods
    tags = {"dataset": config.data.dataset, "method": run.name, "split": "test"}
    params = {key: str(value) for key, value in settings(config, run).items()}
    return TrackedRun("1", run.name, "FINISHED", 0.0, tags, params, {})


@pytest.mark.parametrize("name", PAPERS)
def test_every_published_number_has_a_cell_that_is_the_same_experiment(name):
    runs = [as_run(cell.config) for cell in read(name)[1]]
    rows = [row for row in published() if row.source == name]
    alone = [row for row in rows if not any(is_same_experiment(row, run) for run in runs)]
    assert alone == []
    assert len(rows) >= 60


def test_cross_modal_adapters_cells_tune_as_many_parameters_as_the_paper_counts():
    """Where the paper's own count is of the same tensors: its `full` leaves out CLIP's embeddings."""
    for cell in read("cma_paper")[1]:
        (run,) = cell.config.methods
        rows = beside(as_run(cell.config), "t2v")
        if not rows or run.name == "full":
            continue
        with torch.device("meta"):
            clip = tune(blank(cell.config.clip.model), run.method, cell.config.video.frames)
        count = sum(p.numel() for p in clip.parameters() if p.requires_grad)
        (row,) = (row for row in rows if row.source == "cma_paper")
        rounding = 500 if run.name == "coop" else 10_000
        assert count == pytest.approx(row.trainable, abs=rounding), cell.name


def test_cross_modal_adapters_cells_have_its_papers_settings():
    main = [cell.config for cell in read("cma_paper")[1] if cell.row.startswith("main:")]
    assert all(config.methods[0].pooling == "query_aware" for config in main)
    assert all(config.methods[0].train.batch_size == 128 for config in main)
    assert not any(config.methods[0].train.augment for config in main)
    expected = {
        "msrvtt_9k": (12, 32, 5, 8, 16),
        "msvd": (12, 32, 5, 16, 16),
        "vatex": (12, 32, 5, 16, 64),
        "didemo": (64, 64, 5, 8, 8),
        "activitynet": (64, 64, 20, 16, 512),
    }
    for config in main:
        (run,) = config.methods
        adapter = run.method if run.name == "cross_modal_adapter" else None
        shape = (config.video.frames, config.clip.words, run.train.epochs)
        assert shape == expected[config.name][:3]
        assert adapter is None or (adapter.reduction, adapter.shared) == expected[config.name][3:]


def test_vops_ablations_meet_in_the_method_as_it_is():
    """8 prompts in 12 layers of both towers is one cell, though it stands in four tables."""
    found = read("vop_paper")[1]
    rows = {c.row: c.identity for c in found}
    same = ("main: msrvtt_9k vop", "towers: msrvtt_9k vop both", "depth: msrvtt_9k vop 1-12")
    assert len({rows[row] for row in (*same, "length: msrvtt_9k vop 8")}) == 1
    assert len(found) == 5 * 12 + 1 + 3 + 5 + 5 + 6 + 4 * 5 + 3
    assert len(set(rows.values())) == len(found) - 3 - 1 - 4 - 1


def test_a_number_of_workers_that_may_change_is_refused():
    path = ROOT / "conf/benchmarks/quick.yaml"
    matrix = read_matrix(path, ["set.resources.max_workers=4"])
    with pytest.raises(ValueError, match=r"quick.*yaml: resources.max_workers: a benchmark's cells differ"):
        check(grouped(matrix, cells(matrix), "label")[0])
