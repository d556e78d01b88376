"""A logged model by its run or its alias, from the store that is named, not from MLflow's default one."""

import filecmp

import mlflow
import pytest
from support.report import log_tuned, make_store
from support.tuned_model import make

from pipelines.track.fetch_model import fetch_model
from pipelines.track.store import StoreError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store that is not the default one: that would be a new file in the current folder."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    yield make_store(tmp_path)
    mlflow.set_tracking_uri(None)


def test_a_model_by_its_run_and_by_its_alias_from_a_store_that_is_not_the_default(store, tmp_path):
    made = make(tmp_path / "made")
    run_id = log_tuned(store, made.folder)
    mlflow.set_tracking_uri(store.uri)
    version = mlflow.register_model(f"runs:/{run_id}/vop_p", "shapes").version
    store.client.set_registered_model_alias("shapes", "best", version)
    mlflow.set_tracking_uri(None)

    for number, uri in enumerate(
        (f"runs:/{run_id}/vop_p", "models:/shapes@best", f"models:/shapes/{version}")
    ):
        folder = tmp_path / f"fetched {number}"
        folder.mkdir()
        fetched = fetch_model(uri, store.uri, folder)
        names = sorted(path.name for path in made.folder.iterdir())
        assert sorted(path.name for path in fetched.iterdir()) == names
        assert filecmp.cmpfiles(fetched, made.folder, names, shallow=False) == (names, [], [])

    with pytest.raises(StoreError, match="nobody"):
        fetch_model("models:/shapes@nobody", store.uri, tmp_path)
    assert not mlflow.is_tracking_uri_set()
    assert list((tmp_path / "elsewhere").iterdir()) == []
