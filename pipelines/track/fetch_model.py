"""A logged model of MLflow as a folder on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import mlflow.artifacts
from mlflow.models import Model

from pipelines.track.store import StoreError, local_uri, one_line, settle


def fetch_model(
    uri: str,
    tracking_uri: str,
    folder: Path,
) -> Path:
    """Download `runs:/ID/NAME` or `models:/NAME@ALIAS` below `folder`; returns what `tuned_model` reads.

    Raises StoreError, one line, where there is no such model, or it is not one of ours.
    """
    settle()
    tracking_uri = local_uri(tracking_uri)
    with one_line(tracking_uri), _default_store(tracking_uri):
        downloaded = mlflow.artifacts.download_artifacts(
            artifact_uri=uri,
            dst_path=str(folder),
            tracking_uri=tracking_uri,
        )
        model_folder = Path(downloaded)
        model = Model.load(str(model_folder / "MLmodel"))
        loader = model.flavors.get("python_function", {})

    # Any model of MLflow has that flavor; ours are told by what loads them.
    if loader.get("loader_module") != "vopcore.tuned_model":
        raise StoreError(f"{uri}: a model of MLflow, but none that this project tuned")
    return model_folder / loader["data"]


@contextmanager
def _default_store(tracking_uri: str) -> Iterator[None]:
    """While the block runs, MLflow's default store is this one.

    It looks up the name of a model there, whichever store it was told to download from.
    """
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        # Its type leaves out None, which it takes for the store of MLflow's own choice.
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
