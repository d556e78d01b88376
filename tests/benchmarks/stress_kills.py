"""Ingest killed at random moments, then resumed: python tests/benchmarks/stress_kills.py FOLDER [videos]
[kills]

Every other kill hits the driver together with all its processes (a machine that goes down), the others
one busy Ray worker. Each killed ingest is started again until it ends by itself. At the end every video
must be committed exactly once and every shard must have the bytes of an ingest that nobody disturbed.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from bench_ingest import ROOT, corpus

from vopcore.shards import sidecars, verify
from vopcore.storage import Store

DRIVER = """
import os, sys, ray
from pathlib import Path
from bench_ingest import corpus
from pipelines.ingest.driver import ingest
from vopcore.config.sections import Video
env = {"PYTHONPATH": os.environ["PYTHONPATH"], "OMP_NUM_THREADS": "1"}
ray.init(_temp_dir=sys.argv[1], include_dashboard=False, runtime_env={"env_vars": env})
ingest(corpus(Path(sys.argv[2]), int(sys.argv[3])), sys.argv[4], Video(stored_frames=12, shard_megabytes=16))
"""


def start(folder: Path, num_videos: int, shards: Path, ray_folder: str) -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, ray_folder, str(folder), str(num_videos), str(shards)]
    path = f"{ROOT}:{Path(__file__).parent}"
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)


def kill_worker(driver: subprocess.Popen) -> bool:
    """SIGKILL to one process that decodes; False if none does."""
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "MapBatches" in " ".join(process.cmdline()):
                process.kill()
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def kill_machine(driver: subprocess.Popen) -> None:
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family)


def digests(folder: Path) -> dict[str, str]:
    files = [*folder.rglob("??????.arrow"), *folder.rglob("??????.json")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main(folder: Path, num_videos: int, kills: int) -> None:
    rng = random.Random(0)
    corpus(folder, num_videos)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray", ignore_cleanup_errors=True) as ray_folder:
        began = time.monotonic()
        assert start(folder, num_videos, scratch / "undisturbed", ray_folder).wait() == 0
        pause = (time.monotonic() - began) / (4 * kills)
    done = 0
    while done < kills:
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray", ignore_cleanup_errors=True) as ray_folder:
            driver = start(folder, num_videos, scratch / "killed", ray_folder)
            committed = len(list((scratch / "killed").rglob("??????.json")))
            while driver.poll() is None and len(list((scratch / "killed").rglob("??????.json"))) == committed:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, pause))
            if driver.poll() is None and done % 2 and kill_worker(driver):
                done += 1
                print(f"kill {done}: a worker, {committed} shards were committed at the start", flush=True)
                time.sleep(rng.uniform(0, pause))
            if driver.poll() is None:
                kill_machine(driver)
                done += 1
                print(f"kill {done}: the driver, {committed} shards were committed at the start", flush=True)
            elif done < kills:
                print("finished before it could be killed: starting over", flush=True)
                (scratch / "killed").rename(scratch / f"finished{done}")
            driver.wait()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray", ignore_cleanup_errors=True) as ray_folder:
        assert start(folder, num_videos, scratch / "killed", ray_folder).wait() == 0
    shards = next((scratch / "killed").iterdir())
    videos = [entry.video for sidecar in sidecars(Store(shards)) for entry in sidecar.entries]
    assert sorted(videos) == [f"{number:05d}" for number in range(num_videos)]
    assert verify(shards) == []
    assert digests(scratch / "killed") == digests(scratch / "undisturbed")
    print(f"{done} kills: {num_videos} videos exactly once, all shards as in the undisturbed run")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 2000,
        int(sys.argv[3]) if len(sys.argv) > 3 else 10,
    )
