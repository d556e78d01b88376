"""Annotation tables over files on disk, and what an ingest left in its folder."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from vopcore.datasets import ANNOTATIONS
from vopcore.shards import sidecars
from vopcore.storage import Store


def annotations(paths: Mapping[str, Path | str | None], captions: int = 1) -> pa.Table:
    """A table of the videos, each with a number of captions."""
    rows = [
        {"split": "train", "video": video, "path": path and str(path), "caption": f"caption {number}"}
        for video, path in paths.items()
        for number in range(captions)
    ]
    return pa.Table.from_pylist(rows, schema=ANNOTATIONS)


def committed_videos(folder: str) -> list[str]:
    """Every video of every committed shard, with repeats if there were any."""
    return sorted(entry.video for sidecar in sidecars(Store(folder)) for entry in sidecar.entries)


def digests(folder: str) -> dict[str, str]:
    """A hash of each file of the shards; the same hashes are the same shards."""
    files = [path for path in Path(folder).iterdir() if path.suffix in (".arrow", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
