"""Folders on a disk or in an object store, the cache of their files, and hashes."""

from vopcore.storage.cache import ShardCache
from vopcore.storage.hashing import file_sha256
from vopcore.storage.store import SourceFacts, Store, below, local_copy, open_uri, source_facts

__all__ = [
    "ShardCache",
    "SourceFacts",
    "Store",
    "below",
    "file_sha256",
    "local_copy",
    "open_uri",
    "source_facts",
]
