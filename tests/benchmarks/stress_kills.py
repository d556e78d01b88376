"""Everything that can be killed, killed at random moments of whole runs:
python tests/benchmarks/stress_kills.py FOLDER [kills] [seed] [minutes]

A run decodes, tunes and tells an MLflow server, on a small corpus and on a disk of its own. By turns it loses
its driver, its terminal, a worker that decodes, one that tunes, Ray's own raylet, the MLflow server, or the
room on its disk, at a random moment of the stage in which they are at work. What ended is started again with
the same command, until it ends by itself. Then every video must be committed exactly once, shards, tuned
weights and recall must be those of a run that nobody disturbed, bit by bit; MLflow must have one run,
finished, with every step once; and no file may be left that the undisturbed run does not leave.

Wants the right to mount a disk of 200 MB in memory. A FOLDER that holds an undisturbed run keeps it.
"""

import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil  # noqa: E402
from support.cluster import (  # noqa: E402
    config,
    corpus,
    end,
    metrics,
    shell_environment,
    until,
    weights,
)
from support.ingest import committed_videos, digests  # noqa: E402
from support.mlflow_server import MLflowServer  # noqa: E402

from vopcore.shards import verify  # noqa: E402

EPOCHS = 10
STEPS = 3 * EPOCHS  # 24 clips in batches of 8
DISK_MEGABYTES = 200
PATIENT = ["resources.workers=1", "resources.max_failures=1000", "train.checkpoint_every=2"]

# Runs a command as a terminal does, with its output copied to ours: who kills this has closed the terminal.
TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"

INGEST = "ray::MapBatches"
TUNING = "TrainWorker"
MOST_PER_RUN = 6
LATEST = {INGEST: 3.0, TUNING: 8.0}  # seconds after a stage has begun at which something is killed
HANGS = 300.0  # seconds after the last kill


@dataclass(frozen=True)
class Kill:
    """What is killed, and how; `stage` is what the run must be at: the words in a worker's name."""

    what: str
    how: str
    stage: str
    number: int = 0  # among those of this program


KILLS = [
    Kill("driver", "SIGKILL", INGEST),
    Kill("MLflow server", "SIGKILL", TUNING),
    Kill("train worker", "SIGKILL", TUNING),
    Kill("terminal", "closed", TUNING),
    Kill("ingest worker", "SIGKILL", INGEST),
    Kill("raylet", "SIGKILL", TUNING),
    Kill("disk", "full", TUNING),
    Kill("driver", "SIGTERM", TUNING),
    Kill("ingest worker", "SIGTERM", INGEST),
    Kill("MLflow server", "SIGTERM", TUNING),
    Kill("train worker", "SIGTERM", TUNING),
    Kill("driver", "SIGKILL", TUNING),
    Kill("disk", "full", INGEST),
    Kill("raylet", "SIGTERM", INGEST),
    Kill("terminal", "closed", INGEST),
    Kill("driver", "SIGTERM", INGEST),
]


SUFFERED: list[Kill] = []


class Run:
    """The command of a config, in a terminal and with a folder of its own for Ray.

    temporary: where its temporary files go.
    """

    def __init__(self, folder: Path, file: Path, temporary: Path, *overrides: str) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
        self._family: dict[int, psutil.Process] = {}
        command = [sys.executable, "pipelines/run.py", str(file), *PATIENT, *overrides]
        self._log = (folder / "log").open("a")
        self.terminal = subprocess.Popen(
            [sys.executable, "-c", TERMINAL, *command],
            cwd=ROOT,
            env=shell_environment(
                RAY_AUTH_MODE="disabled",
                RAY_TMPDIR=self._scratch.name,
                TMPDIR=str(temporary),
                MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
            ),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        until(lambda: self.driver or self.terminal.poll() is not None, "the driver")

    @property
    def driver(self) -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.terminal.pid).children():
                return child
        return None

    def processes(self, word: str) -> list[psutil.Process]:
        """Those of the run whose command has the word in it."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.terminal.pid).children(recursive=True):
                self._family[process.pid] = process
                with suppress(psutil.NoSuchProcess):
                    if word in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def is_at(self, stage: str) -> bool:
        return bool(self.processes(stage))

    def has_ended(self) -> bool:
        return self.terminal.poll() is not None

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it goes on for longer."""
        with suppress(subprocess.TimeoutExpired):
            return self.terminal.wait(seconds)
        return None

    def close(self) -> list[str]:
        """End what is left of it: who of its family lived on although the command had ended."""
        _, alive = psutil.wait_procs(self._family.values(), timeout=60)
        left = [" ".join(process.cmdline())[:80] for process in alive if process.is_running()]
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        end(self.terminal)
        self._log.close()
        self._scratch.cleanup()
        return left


@contextmanager
def own_disk(folder: Path) -> Iterator[Path]:
    """A small disk in memory at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m"]
    subprocess.run(["mount", *options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room of a disk; returns the file that holds it."""
    filler = disk / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
            file.flush()
    return filler


def strike(kill: Kill, run: Run, server: MLflowServer, disk: Path, rng: random.Random) -> bool:
    """Do it; False where it came too late."""
    number = getattr(signal, kill.how, signal.SIGKILL)
    if kill.what == "MLflow server":
        server.kill(number)
        run.wait(rng.uniform(0, 15))
        server.start()
        return True

    if kill.what == "disk":
        filler = fill(disk)
        run.wait(rng.uniform(5, 30))
        filler.unlink()
        return True

    if kill.what == "terminal":
        victims = [psutil.Process(run.terminal.pid)]
    elif kill.what == "driver":
        victims = [run.driver]
    else:
        words = {"ingest worker": INGEST, "train worker": TUNING, "raylet": "raylet/raylet"}
        victims = run.processes(words[kill.what])
    with suppress(psutil.NoSuchProcess, AttributeError):
        rng.choice(victims or [None]).send_signal(number)
        return True
    return False


def disturbed(
    folder: Path, disk: Path, clips: Path, kills: list[Kill], rng: random.Random
) -> tuple[list[str], dict[str, Any]]:
    """A run that suffers those of `kills` whose stages it comes to, taken off the list, until it ends well.

    Returns what was wrong about it, and the `facts` of what it has left.
    """
    folder.mkdir(parents=True)
    server = MLflowServer(folder)
    server.start()
    wrong = []
    temporary = tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True)
    try:
        file = config(disk, clips, EPOCHS)
        log = folder / "log"
        code = None
        most = MOST_PER_RUN
        while code != 0:
            size_before = log.stat().st_size if log.exists() else 0
            run = Run(folder, file, Path(temporary.name), f"mlflow.uri={server.uri}")
            try:
                waiting = [kill for kill in kills if kill not in SUFFERED]
                most -= suffer(run, server, disk, waiting[:most], rng)
                code = run.wait(HANGS)
            finally:
                alive = run.close()
            said = log.read_text(errors="replace")[size_before:]
            last = (said.strip().splitlines() or [""])[-1]
            print(f"    it ended with {code}: {last[:150]}", flush=True)

            wrong += [f"lives on: {process}" for process in alive]
            if code is None:
                wrong.append(f"it hangs: {said[-1000:]}")
            if "Traceback" in said:
                wrong.append(f"a stack: {said[-3000:]}")
        wrong += wrong_in_mlflow(server)
        return wrong, facts(disk, Path(temporary.name))
    finally:
        server.kill(signal.SIGKILL)
        temporary.cleanup()


def suffer(run: Run, server: MLflowServer, disk: Path, kills: list[Kill], rng: random.Random) -> int:
    """Kill what the list says as long as the command runs; returns how many kills that were."""
    waiting = list(kills)
    num_before = len(SUFFERED)
    while waiting and not run.has_ended():
        # Those of a stage that is over wait for the next run.
        kill = next((kill for kill in waiting if run.is_at(kill.stage)), None)
        if kill is None:
            if run.is_at(TUNING):
                break
            run.wait(0.05)
            continue

        run.wait(rng.uniform(0, LATEST[kill.stage]))
        if run.has_ended() or not strike(kill, run, server, disk, rng):
            continue
        waiting.remove(kill)
        SUFFERED.append(kill)
        at = "in ingest" if kill.stage == INGEST else "in tuning"
        print(f"  kill {len(SUFFERED)}: {kill.what} {at}, {kill.how}", flush=True)
        run.wait(5)
    return len(SUFFERED) - num_before


def wrong_in_mlflow(server: MLflowServer) -> list[str]:
    """There must be one run, finished, with every step once and what every run leaves."""
    states = [run.info.status for run in server.runs("small")]
    if states != ["FINISHED"]:
        return [f"the runs in MLflow are {states}"]

    wrong = []
    (run,) = server.runs("small")
    steps = sorted(server.steps(run, "train/loss"))
    if steps != list(range(1, STEPS + 1)):
        wrong.append(f"the steps in MLflow are {steps}")
    missing = {"small.yaml", "tuned", "predictions.parquet", "metrics.json"} - server.artifacts(run)
    if missing:
        wrong.append(f"MLflow lacks {missing}")
    return wrong


def left_files(disk: Path) -> list[str]:
    """The names of all files of a run, without what is another one each time.

    That is the times in them, and the hash in the name of the shards' index, which is of when each shard was
    written. Each start of the command leaves a log.
    """
    names = []
    for path in sorted(disk.rglob("*")):
        name = str(path.relative_to(disk))
        name = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d+(_\d+)*", "TIME", name)
        name = re.sub(r"/index/[0-9a-f]{24}\.arrow$", "/index/HASH.arrow", name)
        if path.is_file() and not name.startswith("out/logs/"):
            names.append(name)
    return sorted(names)


def facts(disk: Path, temporary: Path) -> dict[str, Any]:
    """What must be the same however often a run was disturbed."""
    (shards,) = (disk / "out/shards").iterdir()
    return {
        "videos": committed_videos(str(shards)),
        "faults": verify(str(shards)),
        "shards": digests(str(shards)),
        "metrics": metrics(disk),
        "weights": {name: value.hex() for name, value in weights(disk).items()},
        "files": left_files(disk),
        "temporary": [path.name for path in temporary.rglob("*") if path.is_file()],
    }


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In what a disturbed run is not the undisturbed one."""
    wrong = []
    for name, value in wanted.items():
        if found[name] == value:
            continue
        if isinstance(value, dict):
            odd = [key for key in {**found[name], **value} if found[name].get(key) != value.get(key)]
            wrong.append(f"{name} differ in {odd[:9]}")
            continue
        more = sorted((Counter(found[name]) - Counter(value)).elements())
        fewer = sorted((Counter(value) - Counter(found[name])).elements())
        wrong.append(f"{name} differ: {more[:9]} more, {fewer[:9]} fewer")
    return wrong


def main(folder: Path, num_kills: int, seed: int, minutes: float) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    until_then = time.monotonic() + 60 * minutes
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    clips = folder / "clips"
    if not (clips / "captions.jsonl").is_file():
        corpus(clips)

    scratch = Path(tempfile.mkdtemp(dir=folder))
    reference = folder / "undisturbed.json"
    if not reference.is_file():
        with own_disk(folder / "disk") as disk:
            wrong, found = disturbed(scratch / "undisturbed", disk, clips, [], rng)
        assert wrong == [], wrong
        reference.write_text(json.dumps(found))
    wanted = json.loads(reference.read_text())
    assert len(wanted["videos"]) == len(set(wanted["videos"])) == 34
    assert wanted["faults"] == []

    kills = [replace(KILLS[(seed + number) % len(KILLS)], number=number) for number in range(num_kills)]
    wrong = []
    for number in range(num_kills):
        waiting = [kill for kill in kills if kill not in SUFFERED]
        if not waiting or time.monotonic() > until_then:
            break
        with own_disk(folder / "disk") as disk:
            wrong_here, found = disturbed(scratch / str(number), disk, clips, waiting, rng)
        wrong_here += differences(json.loads(json.dumps(found)), wanted)
        print(f"run {number}: {'; '.join(wrong_here) or 'everything as undisturbed'}", flush=True)
        wrong += wrong_here

    print("\n| killed | how | times |\n|---|---|---|")
    for (what, how), times in sorted(Counter((kill.what, kill.how) for kill in SUFFERED).items()):
        print(f"| {what} | {how} | {times} |")
    print(f"\n{len(SUFFERED)} kills, {len(wrong)} things wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    given = [float(number) for number in sys.argv[2:]] + [16, 0, 60][len(sys.argv) - 2 :]
    main(Path(sys.argv[1]).absolute(), int(given[0]), int(given[1]), given[2])
