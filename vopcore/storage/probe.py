"""Whether this machine can use a store, found out before hours of work."""

import os

from pyarrow import fs

from vopcore.storage.retry import StorageError, unusable
from vopcore.storage.store import Store
from vopcore.storage.whole import machine_id


def probe(folder: str, *, write: bool) -> None:
    """Ask a folder for what work will ask of it: that it is there, or with `write` that files can be
    written, read and deleted.

    Raises StorageError: one line with this machine, the folder and the cause.
    """
    store = Store(folder)
    try:
        if write:
            _probe_writing(store)
            return
        info = store.tried(lambda: store.filesystem.get_file_info(store.root))
    except StorageError:
        raise
    except OSError as error:
        raise unusable(str(store), error) from error
    if info.type != fs.FileType.Directory:
        raise unusable(str(store), FileNotFoundError("there is no such folder"))


def _probe_writing(store: Store) -> None:
    name = f".probe-{machine_id()}-{os.getpid()}"
    content = os.urandom(16)
    store.write(name, content)
    read = store.read(name)
    store.delete(name)
    if read != content:
        raise OSError("what was written is not what is read")
