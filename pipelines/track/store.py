"""Where runs are kept, and what can be wrong with it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.command.secrets import without_secrets
from pipelines.track.sqlite import relocate, set_up_alone, sqlite_file, sqlite_uri
from pipelines.track.view import TAGS
from vopcore.storage import Mirror
from vopcore.storage.address import OBJECT_STORES, display, split_options

SETTINGS = {  # MLflow's own, unless the user set them
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing leaves the machine unasked
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # what a server does not take is kept, so nobody waits for long
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

BUCKETS = tuple(f"{scheme}://" for scheme in OBJECT_STORES)
WAITING = "mlflow_waiting"  # in the output folder: what a server has not got yet

log = logging.getLogger(__name__)


class StoreError(ValueError):
    """A store that cannot be read, or an experiment that is not in it; one line without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


class ServerAwayError(StoreError):
    """A server that does not answer, or not sensibly; it may come back."""


@dataclass(frozen=True)
class RunStore:
    """Where the runs of one experiment are kept; plain text, so it travels to any process.

    `experiment_id` is None while the server has never answered; all calls are kept then.
    """

    uri: str
    experiment_id: str | None
    experiment: str
    # the folder that keeps what MLflow does not take; None: that is an error
    journal: str | None = None

    @property
    def waiting_folder(self) -> str:
        """`journal`, where something is kept or may be."""
        assert self.journal is not None, "without a folder what MLflow does not take is an error"
        return self.journal

    @property
    def client(self) -> MlflowClient:
        settle()
        return MlflowClient(tracking_uri=self.uri)


def open_store(
    uri: str | None,
    experiment: str,
    folder: Path,
) -> RunStore:
    """Open the store named in the config, else MLFLOW_TRACKING_URI, else a SQLite file in `folder`.

    Called once, on the driver, before any worker logs: several processes racing on a new SQLite file fail.
    Raises StoreError; ServerAwayError where it may help to wait.
    """
    settle()
    uri = store_uri(uri, folder)

    # A server knows where its artifacts go. A file would put them into the working folder.
    artifacts = None
    if _check_sqlite(uri):
        artifacts = (folder / "mlartifacts").as_uri()

    with one_line(uri), set_up_alone(uri):
        client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(experiment)
        if known is None:
            experiment_id = client.create_experiment(experiment, artifacts, TAGS)
        else:
            _refuse_deleted(known, uri)
            experiment_id = known.experiment_id
    return RunStore(uri, experiment_id, experiment, str(folder / WAITING))


def _check_sqlite(uri: str) -> bool:
    """Whether the store is an SQLite file. Raises StoreError for a URI that names another file than meant."""
    try:
        return sqlite_file(uri) is not None
    except ValueError as error:
        raise StoreError(str(error)) from None


def _refuse_deleted(experiment: Experiment, uri: str) -> None:
    """A deleted experiment takes no runs; noticed here, not at the first number of a run."""
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise StoreError(
            f"experiment {experiment.name!r} is deleted in MLflow at {uri}; bring it back"
            f" ({restore}), or name another: mlflow.experiment=..."
        )


def open_or_wait(
    uri: str | None,
    experiment: str,
    folder: Path,
) -> RunStore:
    """`open_store`; a server that is away ends no run: it gets everything later."""
    try:
        return open_store(uri, experiment, folder)
    except ServerAwayError as error:
        log.warning("%s; all it should have is kept in %s", error, folder / WAITING)
        return RunStore(
            store_uri(uri, folder),
            None,
            experiment,
            str(folder / WAITING),
        )


def store_uri(uri: str | None, folder: Path) -> str:
    """The store that was named, else MLFLOW_TRACKING_URI, else a SQLite file in `folder`."""
    named_uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named_uri:
        return named_uri
    return sqlite_uri(folder / "mlflow.db")


def open_copy(mirror: Mirror) -> None:
    """Have what was pushed last in the mirror's folder, with artifacts that are found there.

    Raises StorageError.
    """
    pushed_from = mirror.fetch()
    if pushed_from is not None and pushed_from != mirror.folder:
        for file in mirror.folder.rglob("mlflow.db"):
            relocate(file, pushed_from, mirror.folder)


def local_uri(uri: str) -> str:
    """SQLite's address for a store such as s3://bucket/outputs/name/mlflow.db, of which a copy is fetched;
    other addresses stay as they are. Raises StoreError.
    """
    location, options = split_options(uri)
    folder, _, name = location.rpartition("/")
    if not uri.startswith(BUCKETS):
        return uri
    try:
        mirror = Mirror(f"{folder}{options}")
        open_copy(mirror)
    except OSError as error:
        raise StoreError(str(error)) from error

    file = mirror.folder / name
    if not file.is_file():
        raise StoreError(f"no MLflow store: no results are kept at {display(uri)}")
    return sqlite_uri(file)


def find_store(uri: str | None, experiment: str) -> RunStore:
    """The store of an experiment that is there already; nothing is made. Raises StoreError.

    uri: None is where a run of `experiment` keeps its numbers unless told otherwise.
    """
    settle()
    uri = local_uri(store_uri(uri, Path("outputs") / experiment))
    _check_sqlite(uri)

    # MLflow would make the file, with no experiment in it.
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise StoreError(f"no MLflow store: {file} is missing; name yours with --uri")

    with one_line(uri), set_up_alone(uri):
        client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(experiment)
        if known is not None:
            _refuse_deleted(known, uri)
            return RunStore(uri, known.experiment_id, experiment)
        others = client.search_experiments()

    # Every store has MLflow's own `Default`, with nothing in it.
    names = sorted(other.name for other in others if other.name != "Default")
    listing = ", ".join(names) or "none"
    raise StoreError(f"no experiment {experiment!r} in {uri}; there are: {listing}")


@contextmanager
def one_line(uri: str) -> Iterator[None]:
    """What MLflow, its database and its files say at length, as a StoreError of one line."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0].replace("<database_uri>", uri)
        message = f"MLflow at {uri}: {reason}"

        # MLflow says 500 of a broken file as well, but only a server may come back.
        is_server = uri.startswith("http")
        is_away = isinstance(error, MlflowException) and error.get_http_status_code() >= 500
        if is_server and is_away:
            raise ServerAwayError(message) from error
        raise StoreError(message) from error


def settle() -> None:
    """Have MLflow as this project wants it; whatever the user set stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)

    # A page of migration messages on a new store.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)

    # Traces each error of the database, such as a full disk, over pages; `one_line` says it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
