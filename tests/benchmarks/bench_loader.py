"""How many videos a second TrainingBatches hands over: raw and JPEG shards, by number of reading threads.

    python tests/benchmarks/bench_loader.py [videos]

Then videos a second read straight from a store that answers each request after 30 ms, by number of threads.

12 frames of 224 pixels, batches of 32, shards in the page cache; captions tokenised as in training. What a
GPU at 40 % of 750 TFLOP/s would take of `vop` (2 x 109 GFLOP a video) is 1,400 videos a second.
"""

import io
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from vopcore.clip import tokenizer
from vopcore.shards import Entry, Layout, ShardIndex, Shards, read_index, write_shard
from vopcore.shards.readers import ArrowFiles, FileName
from vopcore.storage import ShardCache, Store
from vopcore.training.batches import TrainingBatches

SIZE, FRAMES, BATCH = 224, 12, 32
LATENCY = 0.03  # seconds


def main(videos: int) -> None:
    """A line per kind of shard and number of threads."""
    tokenize = tokenizer("ViT-B-32-quickgelu", 32)
    with tempfile.TemporaryDirectory() as folder:
        for storage in ("raw", "jpeg"):
            shards = make(Path(folder) / storage, storage, videos)
            for threads in range(1, (os.cpu_count() or 1) + 1):
                torch.set_num_threads(threads)
                batches = TrainingBatches(
                    shards,
                    {video: ["a man in a red coat walks his dog along the beach"] for video in shards.videos},
                    tokenize,
                    frames=FRAMES,
                    batch_size=BATCH,
                    draw="one",
                    seed=0,
                )
                best = min(epoch(batches, number) for number in range(3))
                print(f"{storage:5}{threads:3} threads{batches.steps_per_epoch * BATCH / best:9.0f} videos/s")


class SlowFile(io.FileIO):
    """A file whose every read answers late, as one of an object store."""

    def read(self, size: int = -1) -> bytes:
        time.sleep(LATENCY)
        return super().read(size)


class SlowStore(Store):
    """A folder that passes for an object store; it is its own file system, as far as reading goes."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.local, self.filesystem, self.is_local = self.filesystem, self, False

    def get_file_info(self, path: object) -> object:
        return self.local.get_file_info(path)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.local.open_input_stream(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(SlowFile(path), mode="r")


def read_late(folder: Path, num_shards: int = 8, rows: int = 40) -> None:
    """Videos a second of 1, 2, 4 and 8 threads; the files are open before the clock starts."""
    names = []
    for shard in range(num_shards):
        pixels = np.zeros((1, 8, 8, 3), np.uint8)
        videos = []
        for row in range(rows):
            names.append(f"{shard}-{row}")
            videos.append((Entry(video=names[-1], status="ok", num_frames=1, times=[0.0]), pixels))
        write_shard(Store(str(folder)), shard, Layout(8, "raw"), videos)
    store = SlowStore(str(folder))
    positions = np.random.default_rng(0).permutation(len(names)).tolist()
    for threads in (1, 2, 4, 8):
        files = ArrowFiles(store, ShardCache(folder / "cache", gigabytes=0))
        index = read_index(store)

        def read(position: int, index: ShardIndex = index, files: ArrowFiles = files) -> None:
            shard = index.shards[index.value("shard", position)]
            file = FileName(f"{shard.number:06d}.arrow", shard.sha256)
            files.batch(file, index.value("row", position))

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, positions))
            began = time.perf_counter()
            list(pool.map(read, positions))
            speed = len(positions) / (time.perf_counter() - began)
        print(f"30 ms late {threads:3} threads{speed:9.0f} videos/s", flush=True)


def epoch(batches: TrainingBatches, number: int) -> float:
    """Seconds to read one epoch."""
    began = time.perf_counter()
    for _ in batches.epoch(number):
        pass
    return time.perf_counter() - began


def make(folder: Path, storage: str, videos: int) -> Shards:
    """Smooth random frames, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (FRAMES, 3, 28, 28), np.uint8)).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")
    frames = smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    rows = (
        (Entry(video=f"v{i:04}", status="ok", num_frames=FRAMES, times=[0.0] * FRAMES), np.roll(frames, i, 1))
        for i in range(videos)
    )
    write_shard(Store(str(folder)), 0, Layout(SIZE, storage), rows)
    return Shards(str(folder))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        read_late(Path(scratch))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
