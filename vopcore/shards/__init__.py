"""Decoded frames on disk: Arrow files that are written once, whole or not at all, and read through a
memory map.
"""

from vopcore.shards.cache import ShardCache
from vopcore.shards.plan import Clip, SourceFacts, clips_in, is_current, rows_per_shard, shard_plan
from vopcore.shards.read import Shards, Sidecar, sidecars, verify
from vopcore.shards.schema import Entry, Layout, Storage, default_storage, folder_name
from vopcore.shards.store import Store, below, local_copy, open_uri, source_facts
from vopcore.shards.write import file_sha256, write_shard

__all__ = [
    "Clip",
    "Entry",
    "Layout",
    "ShardCache",
    "Shards",
    "Sidecar",
    "SourceFacts",
    "Storage",
    "Store",
    "below",
    "clips_in",
    "default_storage",
    "file_sha256",
    "folder_name",
    "is_current",
    "local_copy",
    "open_uri",
    "rows_per_shard",
    "shard_plan",
    "sidecars",
    "source_facts",
    "verify",
    "write_shard",
]
