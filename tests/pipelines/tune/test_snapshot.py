"""Ray's list of checkpoints cut short at every length, and what Ray itself then finds; folders in no list."""

import json
from pathlib import Path

import pytest
from ray.train import Result
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError

from pipelines.tune.snapshot import KEPT, LIST, keep, mend
from vopcore.storage import Store


def ray_list(*names: str) -> bytes:
    """As Ray Train 2.60 writes it: the last of the names is the newest checkpoint."""
    import ray  # for its version alone

    results = [{"checkpoint_dir_name": name, "metrics": {"curves": []}} for name in names]
    state = {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(names),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    return json.dumps(state).encode()


@pytest.fixture
def run(tmp_path) -> Store:
    """A run with two checkpoints in its list, which is kept, and a third whose copy was not finished."""
    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "state.pt").write_bytes(b"x")
    run = Store(tmp_path / "run")
    run.write(LIST, ray_list("checkpoint_1", "checkpoint_2"))
    keep(run)
    return run


def newest(run: Store) -> str:
    """The newest checkpoint that Ray itself finds."""
    return Path(Result.from_path(run.root).checkpoint.path).name


def folders(run: Store) -> list[str]:
    return [name for name in run.names() if name.startswith("checkpoint_") and name != LIST]


@pytest.mark.parametrize("length", [0, 1, 20, 200, 480])
def test_a_list_that_was_cut_short_is_put_back_as_it_was(run, length):
    whole = run.read(LIST)
    Path(run.path(LIST)).write_bytes(whole[:length])
    with pytest.raises(CheckpointManagerInitializationError):
        newest(run)

    mend(run)
    assert run.read(LIST) == whole
    assert newest(run) == "checkpoint_2"


def test_what_is_in_no_list_goes_and_what_is_in_it_stays(run):
    mend(run)
    assert folders(run) == ["checkpoint_1", "checkpoint_2"]
    assert newest(run) == "checkpoint_2"


def test_a_broken_list_is_never_kept(run):
    kept = run.read(KEPT)
    Path(run.path(LIST)).write_bytes(b'{"ray_version": "2')
    keep(run)
    assert run.read(KEPT) == kept


def test_without_a_list_that_can_be_used_the_run_starts_anew_and_says_so(run, capsys):
    run.delete(KEPT)
    Path(run.path(LIST)).write_bytes(b"")
    mend(run)
    assert not run.exists(LIST)
    assert folders(run) == []
    assert "was cut short, and none is kept: it starts anew" in capsys.readouterr().err


def test_a_first_checkpoint_that_came_into_no_list_goes(run):
    run.delete(LIST)
    mend(run)
    assert folders(run) == []


def test_a_run_that_has_not_begun_is_left_alone(tmp_path):
    mend(Store(tmp_path / "none"))
    keep(Store(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []
