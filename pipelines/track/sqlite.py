"""MLflow's SQLite file: its URI whatever the folder is called, and one process at a time to set it up."""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import make_url

PLACES = (  # where MLflow notes in which folder artifacts are
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


def sqlite_uri(file: Path) -> str:
    """The URI of an SQLite file. SQLAlchemy takes `?` for the start of options and decodes `%20`."""
    path = str(file)
    if "%" not in path and "?" not in path:
        return f"sqlite:///{path}"

    # With the driver named, MLflow does not take the encoded path for a folder that it has to make.
    return f"sqlite+pysqlite:///{quote(path)}"


def sqlite_file(uri: str) -> Path | None:
    """The file behind a URI of SQLite; None for another store.

    Raises ValueError where a `?` cuts the path short.
    """
    if not uri.startswith(("sqlite:", "sqlite+")):
        return None
    if "/" in uri.partition("?")[2]:
        raise ValueError(f"{uri}: a ? in a URI starts its options; write %3F for one in a folder's name")

    # `sqlite://` alone is a store in memory.
    database = make_url(uri).database
    if not database:
        return None
    return Path(database)


def relocate(
    file: Path,
    old: Path,
    new: Path,
) -> None:
    """Have the artifacts of a store that was copied looked for in the folder `new` instead of `old`."""
    before = old.as_uri()
    with closing(sqlite3.connect(file)) as database, database:
        for table, column in PLACES:
            database.execute(
                f"update {table} set {column} = ? || substr({column}, ?) where {column} like ? || '/%'",
                (new.as_uri(), len(before) + 1, before),
            )


@contextmanager
def set_up_alone(uri: str) -> Iterator[None]:
    """Wait for another process that is making the tables: two that begin on a new file break each other."""
    file = sqlite_file(uri)
    lock = None
    if file is not None:
        # A folder that may only be read, or is not there: whoever opens the store says so.
        with suppress(OSError):
            lock = file.with_name(f"{file.name}.lock").open("w")
    if lock is None:
        yield
        return

    with lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
