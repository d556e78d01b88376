"""Writes shards: Arrow IPC files of one record batch per video, each committed by a JSON file of the
same number.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa

from vopcore.shards.schema import FORMAT, Entry, Layout
from vopcore.storage.hashing import file_sha256
from vopcore.storage.store import Store


def arrow_name(number: int) -> str:
    return f"{number:06d}.arrow"


def sidecar_name(number: int) -> str:
    return f"{number:06d}.json"


class ShardWriter:
    """Takes the videos of a shard, one after the other. `entries`: those it has taken."""

    def __init__(self, layout: Layout, writer: pa.ipc.RecordBatchFileWriter) -> None:
        self.entries: list[Entry] = []
        self._layout = layout
        self._writer = writer

    def add(self, entry: Entry, pixels: np.ndarray | None) -> None:
        """pixels: uint8 [F, size, size, 3], or None for a failed video."""
        batch = self._layout.batch(entry, pixels)
        self._writer.write_batch(batch)
        self.entries.append(replace(entry, content=content_hash(pixels)))


@contextmanager
def writing_shard(
    store: Store,
    number: int,
    layout: Layout,
) -> Iterator[ShardWriter]:
    """Shard `number`, whole when the block ends without an error; holds one video in memory at a time.

    The Arrow file appears when it is whole; the shard counts once its sidecar is there, which comes last.
    """
    with store.writing(arrow_name(number)) as path:
        with (
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, layout.schema()) as writer,
        ):
            shard = ShardWriter(layout, writer)
            yield shard

        # here the file is complete and still has its temporary name
        sidecar = {
            "format": FORMAT,
            "rows": len(shard.entries),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "layout": asdict(layout),
            "videos": [asdict(entry) for entry in shard.entries],
        }

    # the shard counts from here on
    store.write(sidecar_name(number), json.dumps(sidecar).encode())


def write_shard(
    store: Store,
    number: int,
    layout: Layout,
    videos: Iterable[tuple[Entry, np.ndarray | None]],
) -> list[Entry]:
    """Writes shard `number` as `writing_shard` does, and returns its entries.

    `videos` gives each entry with its pixels uint8 [F, size, size, 3], or None for a failed video.
    """
    with writing_shard(store, number, layout) as shard:
        for entry, pixels in videos:
            shard.add(entry, pixels)
    return shard.entries


def content_hash(pixels: np.ndarray | None) -> str | None:
    """Sixteen characters for the frames of a video, uint8 [F, size, size, 3]; None for a failed one.

    Of the frames before they become JPEGs, whose quality the folder's name tells.
    """
    if pixels is None:
        return None
    content = np.ascontiguousarray(pixels).data
    return hashlib.sha256(content).hexdigest()[:16]
