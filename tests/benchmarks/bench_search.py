"""How fast an index answers, and whether clusters find what comparing everything finds.

run: python tests/benchmarks/bench_search.py [MOMENTS ...]

Unit vectors of 512 numbers around seeded centres, as those of scenes that look alike. Queries are near
centres too. Times of a warm process: CPU (all threads) and on the clock. Recall@10: the share of the exact
ten best that an engine finds.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from vopcore.index import IndexedVideo, MomentRows, MomentTable, Span, VideoRows
from vopcore.index.lance import LanceMoments
from vopcore.index.table import ArrowMoments
from vopcore.storage import Store

DIMENSION = 512
PER_VIDEO = 50  # moments of a video
PER_CENTRE = 100  # moments around one centre
SPREAD = 0.7  # length of the noise about a centre of length one
QUERIES = 100
COUNT = 200  # candidates that a search looks at closely
WRITTEN = 200  # videos at once
ENGINES: dict[str, Callable[[Store, int], MomentTable]] = {"arrow": ArrowMoments, "lance": LanceMoments}


def clustered(rng: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    """Unit float32 [count, D], each near one of the centres."""
    chosen = rng.integers(len(centres), size=count)
    noise = rng.normal(size=(count, DIMENSION)).astype(np.float32)
    vectors = centres[chosen] + SPREAD * noise / DIMENSION**0.5
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_centres(num_moments: int) -> np.ndarray:
    """Unit float32 [C, D]."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(num_moments // PER_CENTRE, 1), DIMENSION)).astype(np.float32)
    return centres / np.linalg.norm(centres, axis=1, keepdims=True)


def make_videos(num_moments: int) -> Iterator[VideoRows]:
    """Videos of PER_VIDEO windows, one frame each."""
    rng = np.random.default_rng(1)
    centres = make_centres(num_moments)
    spans = [Span(4.0 * number, 4.0 * number + 8) for number in range(PER_VIDEO)]
    times = np.array([span.start for span in spans], np.float32)
    for number in range(num_moments // PER_VIDEO):
        vectors = clustered(rng, centres, PER_VIDEO).astype(np.float16)
        rows = MomentRows(
            spans=spans,
            best=times,
            vectors=vectors,
            features=vectors,
            times=times,
            frames=[[row] for row in range(PER_VIDEO)],
            thumbnails=[b""] * PER_VIDEO,
        )
        yield IndexedVideo(video=f"{number:07}.mp4", size=1, mtime=0.0, duration=208.0), rows


def fill(table: MomentTable, num_moments: int) -> None:
    """Write all videos, as `index.py` does: a batch at a time, and once `tidy`."""
    batch = []
    for video in make_videos(num_moments):
        batch.append(video)
        if len(batch) == WRITTEN:
            table.add(batch)
            batch = []
    table.add(batch)
    table.tidy()


def ten_best(table: MomentTable, query: torch.Tensor) -> set[tuple[int, float]]:
    """The best ten windows, by video and start."""
    candidates = table.nearest(query, COUNT, None)
    return set(zip(candidates.videos[:10].tolist(), candidates.starts[:10].tolist(), strict=True))


def measure(num_moments: int) -> None:
    """A row of the table for each engine."""
    queries = torch.from_numpy(clustered(np.random.default_rng(2), make_centres(num_moments), QUERIES))
    exact: list[set[tuple[int, float]]] = []
    for name, engine in ENGINES.items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            table = engine(Store(folder), DIMENSION)
            fill(table, num_moments)
            written = time.process_time() - began
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())

            ten_best(table, queries[0])
            found = []
            clock = []
            began = time.process_time()
            for query in queries:
                asked = time.perf_counter()
                found.append(ten_best(table, query))
                clock.append(1e3 * (time.perf_counter() - asked))
            cpu = 1e3 * (time.process_time() - began) / QUERIES

        exact = exact or found
        shared = [len(ours & theirs) for ours, theirs in zip(found, exact, strict=True)]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        median, slowest = np.percentile(clock, [50, 99])
        print(
            f"| {num_moments:,} | {name} | {cpu:.1f} | {median:.1f} | {slowest:.1f} | "
            f"{np.mean(shared) / 10:.3f} | {written:.0f} | {size / num_moments:,.0f} | {memory:,.0f} |",
            flush=True,
        )


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    torch.set_num_threads(2)
    print(
        "| moments | engine | CPU ms | p50 ms | p99 ms | recall@10 | CPU s to write | bytes each | peak MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for word in argv or ["10000", "100000"]:
        measure(int(word))


if __name__ == "__main__":
    main(sys.argv[1:])
