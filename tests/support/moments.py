"""Indexes of random vectors, and what a brute-force search over them finds."""

from collections.abc import Sequence

import numpy as np
import torch

from vopcore.index import IndexedVideo, IndexHeader, MomentRows, WindowRule

DIMENSION = 16
HEADER = IndexHeader(
    root="/videos",
    engine="arrow",
    dimension=DIMENSION,
    pooling="mean",
    seconds=8.0,
    every=4.0,
    frames=4,
    method="zero_shot",
    model="tiny",
    backbone="b" * 64,
    tuned="t" * 64,
    decoder=1,
)


def video(name: str, duration: float = 30.0, **changes) -> IndexedVideo:
    return IndexedVideo(**({"video": name, "size": 10, "mtime": 1e9, "duration": duration} | changes))


def moments(duration: float = 30.0, seed: int = 0, dimension: int = DIMENSION) -> MomentRows:
    """Random vectors for the windows of a video, each from three frames of its own."""
    rng = np.random.default_rng(seed)
    spans = WindowRule(8, 4).windows(duration)
    features = rng.normal(size=(3 * len(spans), dimension)).astype(np.float16)
    times = np.concatenate([np.linspace(start, end, 3, endpoint=False) for start, end in spans])
    frames = [list(range(3 * i, 3 * i + 3)) for i in range(len(spans))]
    vectors = np.stack([features[rows].astype(np.float32).mean(axis=0) for rows in frames])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return MomentRows(
        spans=spans,
        best=np.array([start for start, _ in spans], np.float32),
        vectors=vectors.astype(np.float16),
        features=features,
        times=times.astype(np.float32),
        frames=frames,
        thumbnails=[f"{seed} {i}".encode() for i in range(len(spans))],
    )


def brute_force(stored: dict[str, MomentRows], query: np.ndarray, names: Sequence[str] | None = None):
    """Every (score, video, start) of the named videos, best first."""
    rows = []
    for name, windows in stored.items():
        if names is not None and name not in names:
            continue
        scores = windows.vectors.astype(np.float32) @ query
        rows += [(float(score), name, span.start) for score, span in zip(scores, windows.spans, strict=True)]
    return sorted(rows, reverse=True)


def unit_query(seed: int, dimension: int = DIMENSION) -> torch.Tensor:
    query = torch.randn(dimension, generator=torch.Generator().manual_seed(seed))
    return query / query.norm()
