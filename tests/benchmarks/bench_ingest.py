"""Ingest beside the same decoding in a plain process pool and beside CLIP4Clip's frame extraction, in one
run: python tests/benchmarks/bench_ingest.py FOLDER [videos]

400 videos by default (links to 8 videos of 6 to 20 s, 320x240), 12 frames at 224, raw shards, as many
processes as there are CPUs. The pool runs `decode_shard` on the same plan of shards, so the difference is
Ray. The extraction is CLIP4Clip's way: OpenCV, one frame a second by seeking, each written as a JPEG.
Workers are up before the clock starts, for all three. Then the peak of the process tree's anonymous
memory for a fifth of the videos and for all, and how fast raw and JPEG shards are read.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray
from scenes import write_scene

from pipelines.ingest.driver import ingest
from pipelines.ingest.task import IngestSettings, decode_shard
from vopcore.config.sections import Video
from vopcore.shards import Layout, Shards, moments_in, rows_per_shard, shard_plan

ROOT = Path(__file__).parents[2]
NUM_CPUS = os.cpu_count()
FRAMES = 12
SCHEMA = pa.schema(
    [("video", pa.string()), ("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
)


def corpus(folder: Path, num_videos: int) -> pa.Table:
    """An annotation table of links to a few distinct videos."""
    sources = [write_scene(folder / f"{i}.mp4", 6 + 2 * i, 320, 240, seed=i) for i in range(8)]
    links = folder / "videos"
    links.mkdir(exist_ok=True)
    rows = []
    for number in range(num_videos):
        link = links / f"{number:05d}.mp4"
        if not link.exists():
            link.hardlink_to(sources[number % len(sources)])
        rows.append({"video": link.stem, "path": str(link)})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def extract(path: str, folder: str) -> None:
    """CLIP4Clip's RawVideoExtractor, writing what it reads."""
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path)
    count, fps = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), int(capture.get(cv2.CAP_PROP_FPS))
    for second in range((count + fps - 1) // fps + 1):
        capture.set(cv2.CAP_PROP_POS_FRAMES, second * fps)
        found, frame = capture.read()
        if not found:
            break
        cv2.imwrite(f"{folder}/{Path(path).stem}_{second:04d}.jpg", frame)


def in_pool(pool: ProcessPoolExecutor, table: pa.Table, folder: Path) -> None:
    layout = Layout(224, "raw")
    settings = IngestSettings(
        folder=str(folder), layout=layout, sampler="uniform", stored_frames=FRAMES, time_limit=600
    )
    rows = rows_per_shard(table.num_rows, FRAMES * layout.bytes_per_frame(), 256, NUM_CPUS)
    plan = shard_plan(moments_in(table), [], rows)
    for future in [pool.submit(decode_shard, settings, number, moments) for number, moments in plan]:
        future.result()


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall, and CPU seconds of this process and all below it."""
    before, began = tree_cpu(), time.monotonic()
    work()
    return time.monotonic() - began, tree_cpu() - before


def tree() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def tree_cpu() -> float:
    total = 0.0
    for process in tree():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The largest sum of anonymous memory of this process and all below it, in MB, asked ten times a
    second.
    """
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            total = 0
            for process in tree():
                try:
                    memory = process.memory_info()
                except psutil.NoSuchProcess:
                    continue
                total += memory.rss - memory.shared  # without the page cache that shards are mapped from
            peak[0] = max(peak[0], total / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def reading(folder: str, videos: list[str]) -> float:
    """Milliseconds to read and copy one video's frames, in random order."""
    shards, total = Shards(folder), 0
    order = np.random.default_rng(0).permutation(videos)
    began = time.process_time()
    for video in order:
        total += int(np.array(shards.frames(video))[0, 0, 0, 0])
    return 1000 * (time.process_time() - began) / len(videos)


def main(folder: Path, num_videos: int) -> None:
    table = corpus(folder, num_videos)
    fifth = table.slice(0, num_videos // 5)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    environment = {
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
    }
    os.environ.update(environment)
    with ProcessPoolExecutor(NUM_CPUS, multiprocessing.get_context("spawn")) as pool:
        in_pool(pool, fifth, scratch / "warm")
        wall, cpu = clocked(lambda: in_pool(pool, table, scratch / "pool"))
        print(f"pool:            {num_videos / wall:6.1f} videos/s, {cpu:6.1f} CPU s", flush=True)
        frames = scratch / "jpegs"
        frames.mkdir()
        jobs = [(path, str(frames)) for path in table["path"].to_pylist()]
        try:
            list(pool.map(extract, *zip(*jobs[:4], strict=True)))
            old_wall, old_cpu = clocked(lambda: list(pool.map(extract, *zip(*jobs, strict=True))))
            print(f"CLIP4Clip's way: {num_videos / old_wall:6.1f} videos/s, {old_cpu:6.1f} CPU s", flush=True)
            print(f"pool / CLIP4Clip's way: {old_wall / wall:.2f} x videos/s, {old_cpu / cpu:.2f} x less CPU")
        except ImportError:
            print("CLIP4Clip's way: no opencv")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray", ignore_cleanup_errors=True) as ray_folder:
        env = {"env_vars": environment}
        ray.init(_temp_dir=ray_folder, include_dashboard=False, num_cpus=NUM_CPUS, runtime_env=env)
        video = Video(stored_frames=FRAMES, storage="raw", time_limit=600)
        ingest(fifth, str(scratch / "warm"), video)
        with peak_memory() as small:
            ingest(fifth, str(scratch / "fifth"), video)
        with peak_memory() as large:
            ray_wall, ray_cpu = clocked(lambda: ingest(table, str(scratch / "ray"), video))
        print(f"Ray ingest:      {num_videos / ray_wall:6.1f} videos/s, {ray_cpu:6.1f} CPU s", flush=True)
        print(f"Ray / pool: {ray_wall / wall:.2f} x wall time, {ray_cpu / cpu:.2f} x CPU time")
        print(
            f"peak memory: {num_videos // 5} videos {small[0]:.0f} MB, {num_videos} videos {large[0]:.0f} MB"
        )
        for storage in ("raw", "jpeg"):
            result = ingest(fifth, str(scratch / storage), Video(stored_frames=FRAMES, storage=storage))
            size = sum(file.stat().st_size for file in Path(result.folder).glob("*.arrow"))
            frames = sum(entry.num_frames for entry in Shards(result.folder).videos.values())
            read = reading(result.folder, fifth["video"].to_pylist())
            print(
                f"{storage}: {size / frames / 1000:.1f} kB a frame, {read:.2f} ms CPU to read {FRAMES} frames"
            )
        ray.shutdown()
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400)
