"""How many videos a second TrainingBatches hands over: raw and JPEG shards, by number of reading threads.

    python tests/benchmarks/bench_loader.py [videos]

12 frames of 224 pixels, batches of 32, shards in the page cache; captions tokenised as in training. What a
GPU at 40 % of 750 TFLOP/s would take of `vop` (2 x 109 GFLOP a video) is 1,400 videos a second.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vopcore.clip import tokenizer
from vopcore.shards import Entry, Layout, Shards, write_shard
from vopcore.storage import Store
from vopcore.training.batches import TrainingBatches

SIZE, FRAMES, BATCH = 224, 12, 32


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
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
