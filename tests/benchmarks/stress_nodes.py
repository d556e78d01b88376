"""Nodes killed at random moments: python tests/benchmarks/stress_nodes.py FOLDER [kills] [seed]

Two nodes run the whole command, ingest and tuning, on a small corpus. Again and again one of them is killed
with all its processes at a random moment, and another one joins a random moment later. At the end every video
must be committed exactly once, and recall and tuned weights must be those of a run that nobody disturbed, bit
by bit.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.cluster import Nodes, config, corpus, metrics, read_log, start, weights  # noqa: E402
from support.ingest import committed_videos  # noqa: E402

EPOCHS = 20
PATIENT = "resources.max_failures=1000"


def undisturbed(folder: Path, clips: Path) -> float:
    """Seconds that a whole run takes here."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        began = time.monotonic()
        assert start(config(folder, clips, EPOCHS), RAY_TMPDIR=temporary).wait() == 0, read_log(folder)
        return time.monotonic() - began


def disturbed(folder: Path, clips: Path, seconds: float, kills: int, rng: random.Random) -> list[str]:
    """One run whose nodes die at up to `kills` random moments; returns what it was at when they did."""
    at = []
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        nodes = Nodes(temporary)
        alive = [nodes.add(), nodes.add()]
        run = start(config(folder, clips, EPOCHS), PATIENT, RAY_ADDRESS=nodes.address)
        while len(at) < kills and not ended(run, rng.uniform(0.1, 0.5) * seconds):
            nodes.kill(alive.pop(rng.randrange(2)))
            at.append(stage(folder))
            ended(run, rng.uniform(0, 10))
            alive.append(nodes.add())
        assert run.wait(900) == 0, read_log(folder)
        nodes.end()
    return at


def ended(run: subprocess.Popen, seconds: float) -> bool:
    try:
        run.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def stage(folder: Path) -> str:
    shards = len(list(folder.glob("out/shards/*/0*.json")))
    checkpoints = len(list(folder.glob("out/runs/*/checkpoint_*")))
    return "tuning" if checkpoints else f"{shards} shards"


def main(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    clips = corpus(scratch / "clips")
    seconds = undisturbed(scratch / "undisturbed", clips)
    done = 0
    for number in range(10 * kills):
        if done >= kills:
            break
        this = scratch / str(number)
        at = disturbed(this, clips, seconds, kills - done, rng)
        done += len(at)
        (shards,) = (this / "out/shards").iterdir()
        videos = committed_videos(str(shards))
        assert len(videos) == len(set(videos)) == 34
        assert metrics(this) == metrics(scratch / "undisturbed")
        assert weights(this) == weights(scratch / "undisturbed")
        print(f"run {number}: nodes killed at {', '.join(at) or 'no moment'}: same numbers", flush=True)
    print(f"{done} nodes killed: every video once, recall and weights as undisturbed")


if __name__ == "__main__":
    given = sys.argv[2:]
    main(Path(sys.argv[1]), int(given[0]) if given else 10, int(given[1]) if len(given) > 1 else 0)
