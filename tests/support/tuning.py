"""A small world on disk for the tests of training: shards of random videos, and their captions."""

from pathlib import Path

import numpy as np
import torch

from vopcore.shards import Entry, Layout, Shards, write_shard
from vopcore.storage import Store

SIZE, STORED = 16, 6
CAPTIONS = {f"v{i:03}": [f"caption {10 * i + c}" for c in range(1 + i % 3)] for i in range(24)}


def make_shards(
    folder: Path, videos: int = 24, per_shard: int = 10, short: int = 0, size: int = SIZE
) -> Shards:
    """`videos` videos of random frames, in shards; the first `short` ones have only two frames."""
    store, rng = Store(str(folder)), np.random.default_rng(0)
    rows = []
    for i in range(videos):
        count = 2 if i < short else STORED
        entry = Entry(video=f"v{i:03}", status="ok", num_frames=count, times=[float(t) for t in range(count)])
        rows.append((entry, rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)))
    for number, start in enumerate(range(0, videos, per_shard)):
        write_shard(store, number, Layout(size, "raw"), rows[start : start + per_shard])
    return Shards(str(folder))


def tokenize(texts: list[str]) -> torch.Tensor:
    """Each caption's number between a start and an end: Int64 [N, 6], for the vocabulary of `tiny_clip`."""
    return torch.tensor([[97, int(text.split()[-1]) % 90 + 1, 98, 0, 0, 0] for text in texts])
