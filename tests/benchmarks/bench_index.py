"""What indexing a video costs beside bare decoding of the same frames, without the model.

run: python tests/benchmarks/bench_index.py VIDEO [VIDEO ...]

Bare: `decode_moments` of all windows at once, which decodes and resizes each frame once. Indexing: the same
by `decode_windows` with thumbnails, as pieces that travel to the encoder, and written with
random vectors.
CPU seconds of this process, the lowest of three turns each, taken in turn.
"""

import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipelines.indexing.driver import join
from pipelines.indexing.task import DecodeSettings, Ending, decode_windows
from vopcore.index import IndexedVideo, MomentRows, WindowRule
from vopcore.index.encode import WindowFrames
from vopcore.index.table import ArrowMoments
from vopcore.storage import Store
from vopcore.video import decode, decode_moments

DIMENSION = 512
FRAMES = 12
SIZE = 224
TURNS = 3


def without_model(windows: WindowFrames) -> MomentRows:
    """Random vectors in the place of a CLIP's."""
    rng = np.random.default_rng(0)
    num_frames = len(windows.times)
    vectors = rng.normal(size=(len(windows.spans), DIMENSION)).astype(np.float16)
    return MomentRows(
        spans=list(windows.spans),
        best=np.array([windows.times[rows[0]] for rows in windows.frames], np.float32),
        vectors=vectors,
        features=rng.normal(size=(num_frames, DIMENSION)).astype(np.float16),
        times=np.asarray(windows.times, np.float32),
        frames=[list(rows) for rows in windows.frames],
        thumbnails=[windows.thumbnails[rows[0]] for rows in windows.frames],
    )


def index(settings: DecodeSettings, video: str, folder: Path) -> None:
    """Everything that `index.py` does with one video but for the model and Ray."""
    pieces = []
    duration = 0.0
    for piece in decode_windows(settings, video):
        carried = pickle.loads(pickle.dumps(piece, protocol=pickle.HIGHEST_PROTOCOL))
        if isinstance(carried, Ending):
            assert carried.status == "ok", carried.error
            duration = carried.duration
        else:
            pieces.append(without_model(carried))
    entry = IndexedVideo(video=video, size=1, mtime=0.0, duration=duration)
    ArrowMoments(Store(folder), DIMENSION).add([(entry, join(pieces))])


def cpu_of(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main(argv: Sequence[str]) -> None:
    """A row per video."""
    print("| video | s | bare, CPU s per hour | indexed, CPU s per hour | ratio | MB per hour |")
    print("|---|---|---|---|---|---|")
    for name in argv:
        path = Path(name).absolute()
        rule = WindowRule()
        settings = DecodeSettings(
            root=str(path.parent), rule=rule, frames=FRAMES, size=SIZE, sampler="uniform", time_limit=3600
        )
        duration = decode(path, count=1, size=SIZE, sampler="head").duration
        windows = rule.windows(duration)
        bare, indexed, sizes = [], [], []
        for _ in range(TURNS):
            bare.append(
                cpu_of(lambda: decode_moments(path, windows, count=FRAMES, size=SIZE))  # noqa: B023 - at once
            )
            with tempfile.TemporaryDirectory() as folder:
                indexed.append(
                    cpu_of(lambda: index(settings, path.name, Path(folder)))  # noqa: B023 - at once
                )
                sizes.append(sum(file.stat().st_size for file in Path(folder).iterdir()))
        hours = duration / 3600
        print(
            f"| {path.name} | {duration:.0f} | {min(bare) / hours:.0f} | {min(indexed) / hours:.0f} | "
            f"{min(indexed) / min(bare):.2f} | {sizes[0] / hours / 1e6:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
