"""Where the results of a command are worked on and kept: its output folder, or one that a bucket keeps.

A folder in a bucket is worked on as a folder of this machine, and brought up at the end of each run or cell;
a command on another machine goes on with it. What the command says is kept beside the results.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines import track
from pipelines.command.exit_codes import copied_to
from pipelines.command.secrets import without_secrets
from pipelines.experiment.prepare import only_writer
from pipelines.track.sqlite import sqlite_uri
from vopcore.config import RunConfig
from vopcore.storage import Mirror, StorageError, below, display, is_uri, writer_lock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptOutput:
    """folder: where results are worked on; bucket: the address they are kept at, None where that is all."""

    folder: Path
    bucket: str | None = None
    mirror: Mirror | None = None

    def placed(self, config: RunConfig) -> RunConfig:
        """The config with its output on this machine; what all machines write stays in the bucket."""
        if self.bucket is None:
            return config
        places = {"output": str(self.folder), "storage": config.storage or self.bucket}
        return config.model_copy(update=places)

    def keep(self) -> None:
        """Bring up what is new. That it cannot be done now ends no work: it is tried again later."""
        if self.mirror is None:
            return
        try:
            self.mirror.push()
        except StorageError as error:
            log.warning("results are not kept yet, only in %s: %s", self.folder, error)

    def address_of(self, store: str) -> str:
        """MLflow's address as any machine can use it: its SQLite file is in the bucket too."""
        if self.bucket is None or store != sqlite_uri(self.folder / "mlflow.db"):
            return store
        return without_secrets(below(self.bucket, "mlflow.db"))

    @contextmanager
    def said(self) -> Iterator[None]:
        """Keep what the command says while the block runs, and why it ends, in `logs/`."""
        now = datetime.now(UTC)
        with copied_to(self.folder / "logs" / f"{now:%Y-%m-%dT%H-%M-%S}.log"):
            yield


@contextmanager
def kept_output(output: str) -> Iterator[KeptOutput]:
    """Be the only command that writes to an output folder or bucket, as long as the block runs.

    Raises ConfigError and LockedError, as `only_writer`, and StorageError where a bucket cannot be used.
    """
    if not is_uri(output):
        with only_writer(Path(output)):
            yield KeptOutput(Path(output))
        return

    mirror = Mirror(output)
    with writer_lock(output):
        # Before the folder is locked, as it may be put aside.
        track.open_copy(mirror)
        with only_writer(mirror.folder):
            print(f"results are kept in {display(output)}, and worked on in {mirror.folder}")
            try:
                yield KeptOutput(mirror.folder, output, mirror)
            finally:
                mirror.push()
