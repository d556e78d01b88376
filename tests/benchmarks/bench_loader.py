"""How many videos a second of CPU time TrainingBatches hands over: raw and JPEG shards.

    PYTHONPATH=.:tests python tests/benchmarks/bench_loader.py [videos]

First, by the number of threads, the videos a second that are read straight from a store each read of which
takes 30 ms.

Then 12 frames of 224 pixels, batches of 32, shards in the page cache; captions tokenised as in training,
once. The second column is the share of the time that a step of 30 ms waits for its batch with 4 reading
threads: it needs 4 idle cores. What a GPU at 40 % of 750 TFLOP/s would take of `vop` (2 x 109 GFLOP a video)
is 1,400 videos a second.
"""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from support.late_files import late_shards

from vopcore.clip import tokenizer
from vopcore.shards import Entry, Layout, Shards, write_shard
from vopcore.storage import Store
from vopcore.training.batches import TrainingBatches

SIZE, FRAMES, BATCH = 224, 12, 32
STEP, THREADS = 0.03, 4  # seconds of a simulated step; threads that read meanwhile
LATENCY = 0.03  # seconds until a store answers
LATE_SHARDS, LATE_ROWS = 8, 40


def main(videos: int) -> None:
    """A line per number of threads, and one per kind of shard."""
    with tempfile.TemporaryDirectory() as folder:
        read_late(Path(folder))

    tokenize = tokenizer("ViT-B-32-quickgelu", 32)
    caption = "a man in a red coat walks his dog along the beach"
    with tempfile.TemporaryDirectory() as folder:
        for storage in ("raw", "jpeg"):
            shards = make(Path(folder) / storage, storage, videos)
            batches = TrainingBatches(
                shards,
                {video: [f"{caption} {number}"] for number, video in enumerate(shards.videos)},
                tokenize,
                frames=FRAMES,
                batch_size=BATCH,
                draw="one",
                seed=0,
            )
            torch.set_num_threads(1)
            seconds = min(read(batches, number) for number in range(4))  # the first one tokenises
            torch.set_num_threads(THREADS)
            waiting = wait_share(batches)
            rate = batches.steps_per_epoch * BATCH / seconds
            print(f"{storage:5}{rate:9.0f} videos per CPU second{100 * waiting:8.1f} % waiting")


def read(batches: TrainingBatches, number: int) -> float:
    """CPU seconds to read one epoch."""
    began = time.process_time()
    for _ in batches.epoch(number):
        pass
    return time.process_time() - began


def wait_share(batches: TrainingBatches) -> float:
    """Share of the time in which a step of STEP seconds waits for its batch, the first one left out."""
    waited = 0.0
    reading = batches.epoch(9)
    next(reading)
    began = asked = time.perf_counter()
    for _ in reading:
        waited += time.perf_counter() - asked
        time.sleep(STEP)
        asked = time.perf_counter()
    return waited / (time.perf_counter() - began)


def read_late(folder: Path) -> None:
    """Each number of threads reads every video once more, when the files are open."""
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    videos = []
    for number in range(LATE_SHARDS):
        rows = []
        for row in range(LATE_ROWS):
            entry = Entry(video=f"{number}-{row}", status="ok", num_frames=1, times=[0.0])
            rows.append((entry, pixels))
            videos.append(entry.video)
        write_shard(Store(str(folder / "shards")), number, Layout(8, "raw"), rows)

    np.random.default_rng(0).shuffle(videos)
    for threads in (1, 2, 4, 8):
        shards = late_shards(folder / "shards", folder / "cache", lambda: time.sleep(LATENCY))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(shards.frames, videos))
            began = time.perf_counter()
            list(pool.map(shards.frames, videos))
            speed = len(videos) / (time.perf_counter() - began)
        print(f"30 ms late, {threads} threads{speed:9.0f} videos/s", flush=True)


def make(folder: Path, storage: str, videos: int) -> Shards:
    """Smooth random frames, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (FRAMES, 3, 28, 28), np.uint8)).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")
    frames = smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

    rows = []
    for number in range(videos):
        times = [0.0] * FRAMES
        entry = Entry(video=f"v{number:04}", status="ok", num_frames=FRAMES, times=times)
        rows.append((entry, np.roll(frames, number, 1)))
    write_shard(Store(str(folder)), 0, Layout(SIZE, storage), rows)
    return Shards(str(folder))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
