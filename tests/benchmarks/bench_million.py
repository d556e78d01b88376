"""The stages of a run with as many videos as one likes.

run: python tests/benchmarks/bench_million.py SIZE [FOLDER]

Each stage is a process of its own, on SIZE / 10 and on SIZE videos: CPU seconds (user and system), the
largest resident memory, the most open files, and the exponent by which the CPU seconds beyond those of an
empty run grow. The videos are names of one small file (hard links, in folders of a thousand), and their
shards hold one frame of 8 x 8 pixels each: nothing is decoded here. A further stage is a function that takes
the folder and the number of videos, and a line in STAGES.
"""

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
ROWS = 148  # videos of a shard, as 12 raw frames at 224 pixels give in 256 MB
LINKS = 30_000  # names of one file; file systems allow no more than some ten thousands


def make_files(folder: Path, num_videos: int) -> None:
    """The videos' files."""
    source = folder / "source0.mp4"
    for number in range(num_videos):
        if number % LINKS == 0:
            source = folder / f"source{number // LINKS}.mp4"
            source.write_bytes(b"a video of ten kilobytes".ljust(10_000))
        path = video_path(folder, number)
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        os.link(source, path)


def make_shards(folder: Path, num_videos: int) -> None:
    """Shards as a finished ingest leaves them, without an index: the first is written, the others are names
    of its file with sidecars of their own.
    """
    from pipelines.ingest.driver import ingest_settings
    from vopcore.shards import Entry, write_shard
    from vopcore.storage import Store

    settings = ingest_settings(str(folder / "shards"), video_settings())
    store = Store(settings.folder)
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    facts = {"num_frames": 1, "times": [0.0] * 12, "width": 320, "height": 240, "fps": 25.0}
    facts |= {"duration": 10.0, "codec": "h264", "source_sha256": "0" * 64}
    entries = [Entry(video=video_id(number), status="ok", **facts) for number in range(ROWS)]
    write_shard(store, 0, settings.layout, [(entry, pixels) for entry in entries])

    sidecar = json.loads(store.read("000000.json"))
    for start in range(0, num_videos, ROWS):
        count = min(ROWS, num_videos - start)
        videos = sidecar["videos"][:count]
        for number, video in enumerate(videos, start):
            status = os.stat(video_path(folder, number))  # noqa: PTH116 - a million of them
            video["video"] = video_id(number)
            video["source_size"] = status.st_size
            video["source_mtime"] = status.st_mtime_ns / 1e9
        content = json.dumps(sidecar | {"videos": videos, "rows": count})
        shard = start // ROWS
        Path(store.path(f"{shard:06d}.json")).write_text(content)
        if shard:
            os.link(store.path("000000.arrow"), store.path(f"{shard:06d}.arrow"))


def make_annotations(folder: Path, num_videos: int) -> None:
    """The annotation table, a caption for each video."""
    import pyarrow as pa
    import pyarrow.feather as feather

    videos = [video_id(number) for number in range(num_videos)]
    paths = [str(video_path(folder, number)) for number in range(num_videos)]
    nothing = pa.nulls(num_videos, pa.float64())
    table = pa.table({"video": videos, "path": paths, "start": nothing, "end": nothing})
    feather.write_feather(table, str(folder / "annotations.arrow"), compression="uncompressed")


def ingest_nothing(folder: Path, num_videos: int) -> None:
    """An ingest that finds every video decoded."""
    import pyarrow.feather as feather

    from pipelines.ingest.driver import ingest

    table = feather.read_table(str(folder / "annotations.arrow"), memory_map=True)
    result = ingest(table, str(folder / "shards"), video_settings())
    assert (result.ok, result.decoded_now) == (num_videos, 0)


def open_shards(folder: Path, num_videos: int) -> None:
    """What a tuning worker does before its first batch: open the shards, know what is decoded, read one."""
    from vopcore.shards import Shards

    shards = Shards(shard_folder(folder))
    assert len(shards.decoded()) == num_videos
    assert shards.frames(video_id(num_videos // 2)).shape == (1, 8, 8, 3)


def read_everything(folder: Path, num_videos: int) -> None:
    """Every video once, in random order, by eight threads."""
    from vopcore.shards import Shards

    shards = Shards(shard_folder(folder))
    order = np.random.default_rng(0).permutation(num_videos).tolist()
    with ThreadPoolExecutor(8) as pool:
        for chunk in np.array_split(order, 64):
            list(pool.map(lambda number: shards.frames(video_id(number)), chunk.tolist()))


def identify(folder: Path, num_videos: int) -> None:
    """The digest of all videos, which is part of what a run is called by."""
    from vopcore.shards import Shards

    assert len(Shards(shard_folder(folder)).digest()) == 16


STAGES: dict[str, Callable[[Path, int], None]] = {
    "make the files": make_files,
    "write the shards": make_shards,
    "make the annotations": make_annotations,
    "ingest, nothing to do, no index": ingest_nothing,
    "ingest, nothing to do": ingest_nothing,
    "a worker opens the shards": open_shards,
    "read every video, 8 threads": read_everything,
    "digest of all videos": identify,
}


def video_id(number: int) -> str:
    return f"video{number:07d}"


def video_path(folder: Path, number: int) -> Path:
    return folder / "videos" / f"{number // 1000:04d}" / f"{video_id(number)}.mp4"


def video_settings() -> "Video":  # noqa: F821 - imported where a stage needs it
    from vopcore.config.sections import Video

    return Video(frames=1, size=8)


def shard_folder(folder: Path) -> str:
    (found,) = (folder / "shards").iterdir()
    return str(found)


def run_stage(name: str, folder: Path, num_videos: int) -> None:
    """Runs in a process of its own; prints what it took as JSON."""
    most_open = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most_open
        while not ended.wait(0.2):
            most_open = max(most_open, len(os.listdir("/proc/self/fd")))  # noqa: PTH208

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    began = time.monotonic()
    if num_videos:
        STAGES[name](folder, num_videos)
    else:
        import vopcore.shards  # noqa: F401 - what every stage imports
    ended.set()
    thread.join()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    took = {
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": time.monotonic() - began,
        "memory": usage.ru_maxrss / 1024,
        "files": most_open,
    }
    print(json.dumps(took))


def measured(name: str, folder: Path, num_videos: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--stage", name, str(folder), str(num_videos)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main(size: int, parent: str | None) -> None:
    print("| stage | videos | CPU s | wall s | peak MiB | open files | exponent |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=parent, prefix="million") as scratch:
        empty = measured("digest of all videos", Path(scratch), 0)
        print(f"| imports alone | 0 | {empty['cpu']:.1f} | {empty['wall']:.1f} | {empty['memory']:.0f} | | |")
        cpu: dict[str, float] = {}
        for num_videos in (size // 10, size):
            folder = Path(scratch) / str(num_videos)
            folder.mkdir()
            for name in STAGES:
                took = measured(name, folder, num_videos)
                exponent = ""
                if name in cpu:
                    grown = max(took["cpu"] - empty["cpu"], 0.01) / max(cpu[name] - empty["cpu"], 0.01)
                    exponent = f"{math.log10(grown):.2f}"
                cpu[name] = took["cpu"]
                numbers = f"{took['cpu']:.1f} | {took['wall']:.1f} | {took['memory']:.0f} | {took['files']}"
                print(f"| {name} | {num_videos:,} | {numbers} | {exponent} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--stage":
        run_stage(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
