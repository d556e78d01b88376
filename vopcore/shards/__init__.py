"""Decoded frames on disk: Arrow files that are written once, whole or not at all, and read through a
memory map.
"""

from vopcore.shards.index import ShardFile, ShardIndex, read_index, save_index
from vopcore.shards.plan import (
    Moment,
    State,
    moment_table,
    moments_in,
    moments_of,
    rows_per_shard,
    shard_plan,
    states,
)
from vopcore.shards.read import Shards, Sidecar, sidecars, verify
from vopcore.shards.schema import (
    PLAIN_PREPROCESSING,
    Entry,
    Layout,
    Storage,
    default_storage,
    folder_name,
)
from vopcore.shards.write import write_shard, writing_shard

__all__ = [
    "PLAIN_PREPROCESSING",
    "Entry",
    "Layout",
    "Moment",
    "ShardFile",
    "ShardIndex",
    "Shards",
    "Sidecar",
    "State",
    "Storage",
    "default_storage",
    "folder_name",
    "moment_table",
    "moments_in",
    "moments_of",
    "read_index",
    "rows_per_shard",
    "save_index",
    "shard_plan",
    "sidecars",
    "states",
    "verify",
    "write_shard",
    "writing_shard",
]
