"""Folders on a disk or in an object store: their files, their one writer, the cache, and hashes."""

from vopcore.storage.address import below, display, is_uri, local_path, open_uri
from vopcore.storage.cache import ShardCache
from vopcore.storage.hashing import file_sha256
from vopcore.storage.lock import LockedError, Writer, current_writer, writer_lock
from vopcore.storage.mirror import Mirror, working_folder
from vopcore.storage.probe import probe
from vopcore.storage.retry import StorageError, with_retries
from vopcore.storage.source import (
    SourceFacts,
    all_source_facts,
    source_facts,
    source_sha256,
)
from vopcore.storage.store import Store, local_copy
from vopcore.storage.whole import scratch_folder, sweep, write_whole, written_whole

__all__ = [
    "LockedError",
    "Mirror",
    "ShardCache",
    "SourceFacts",
    "StorageError",
    "Store",
    "Writer",
    "all_source_facts",
    "below",
    "current_writer",
    "display",
    "file_sha256",
    "is_uri",
    "local_copy",
    "local_path",
    "open_uri",
    "probe",
    "scratch_folder",
    "source_facts",
    "source_sha256",
    "sweep",
    "with_retries",
    "working_folder",
    "write_whole",
    "writer_lock",
    "written_whole",
]
