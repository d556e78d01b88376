"""Everything that can be killed, killed at random moments of whole runs:
python tests/benchmarks/stress_kills.py FOLDER [kills] [seed]

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

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

EPOCHS = 30
STEPS = 3 * EPOCHS  # 24 clips in batches of 8
DISK_MEGABYTES = 200
PATIENT = ["resources.workers=1", "resources.max_failures=1000", "train.checkpoint_every=2"]

# Runs a command as a terminal does, with its output copied to ours: who kills this has closed the terminal.
TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"

INGEST = "ray::MapBatches"
TUNING = "RayTrainWorker"


@dataclass(frozen=True)
class Kill:
    """What is killed, and how; `stage` is what the run must be at: the words in a worker's name."""

    what: str
    how: str
    stage: str


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


class Run:
    """The command of a config, in a terminal and with Ray's folder and temporary files of its own."""

    def __init__(self, folder: Path, file: Path, *overrides: str) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
        self.temporary = Path(self._scratch.name) / "tmp"
        self.temporary.mkdir()
        command = [sys.executable, "pipelines/run.py", str(file), *PATIENT, *overrides]
        self._log = (folder / "log").open("a")
        self.terminal = subprocess.Popen(
            [sys.executable, "-c", TERMINAL, *command],
            cwd=ROOT,
            env=shell_environment(
                RAY_AUTH_MODE="disabled",
                RAY_TMPDIR=self._scratch.name,
                TMPDIR=str(self.temporary),
                MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
            ),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        until(lambda: self.driver or self.terminal.poll() is not None, "the driver")
        self._family: dict[int, psutil.Process] = {}

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
        scraps = [
            str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*") if path.is_file()
        ]
        if scraps:
            print(f"  in its temporary folder are left: {', '.join(scraps[:9])}", flush=True)
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


def disturbed(folder: Path, disk: Path, clips: Path, kills: list[Kill], rng: random.Random) -> list[str]:
    """A run that suffers the first of `kills` as long as it is at their stages; takes them off the list.

    Returns a line for each: what was killed, what the command said of it, and what of it was left.
    """
    folder.mkdir(parents=True)
    server = MLflowServer(folder)
    server.start()
    told = []
    try:
        file = config(disk, clips, EPOCHS)
        log = folder / "log"
        while True:
            size_before = log.stat().st_size if log.exists() else 0
            run = Run(folder, file, f"mlflow.uri={server.uri}")
            while kills and not run.has_ended():
                kill = kills[0]
                if not run.is_at(kill.stage):
                    is_later = kill.stage == INGEST and run.is_at(TUNING)
                    if is_later:
                        kills.append(kills.pop(0))  # of an earlier stage: for the next run
                    run.wait(0.05)
                    continue

                run.wait(rng.uniform(0, 6 if kill.stage == TUNING else 3))
                if run.has_ended() or not strike(kill, run, server, disk, rng):
                    continue
                del kills[0]
                code = run.wait(5)
                told.append(
                    f"{kill.what} {kill.how} {stage_name(kill)}: {'it went on' if code is None else code}"
                )
                print(f"  {told[-1]}", flush=True)
                if all(k.stage == INGEST for k in kills) and kill.stage == TUNING:
                    break

            code = run.wait(600)
            left = run.close()
            assert not left, left
            lines = log.read_text(errors="replace")[size_before:]
            assert "Traceback" not in lines, lines[-6000:]
            print(f"  ended with {code}: {(lines.strip().splitlines() or [''])[-1][:150]}", flush=True)
            if code == 0:
                break
            assert code is not None, f"it hangs:\n{lines[-3000:]}"
        check_mlflow(server)
    finally:
        server.kill(signal.SIGKILL)
    return told


def stage_name(kill: Kill) -> str:
    return "in ingest" if kill.stage == INGEST else "in tuning"


def check_mlflow(server: MLflowServer) -> None:
    """One run, finished, every step once, and the artifacts of every run."""
    (run,) = server.runs("small")
    assert run.info.status == "FINISHED", run.info.status
    assert sorted(server.steps(run, "train/loss")) == list(range(1, STEPS + 1))
    assert server.artifacts(run) >= {"small.yaml", "tuned", "predictions.parquet", "metrics.json"}


def left_files(disk: Path) -> list[str]:
    """The names of all files of a run, without what is another one each time: times and MLflow's ids."""
    names = []
    for path in sorted(disk.rglob("*")):
        name = str(path.relative_to(disk))
        name = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d+(_\d+)*", "TIME", name)
        if path.is_file():
            names.append(name)
    return sorted(names)


def facts(disk: Path) -> dict[str, object]:
    """What must be the same however often a run was disturbed."""
    (shards,) = (disk / "out/shards").iterdir()
    videos = committed_videos(str(shards))
    assert len(videos) == len(set(videos)) == 34
    assert verify(str(shards)) == []
    return {
        "shards": digests(str(shards)),
        "metrics": metrics(disk),
        "weights": {name: value.hex() for name, value in weights(disk).items()},
        "files": left_files(disk),
    }


def main(folder: Path, num_kills: int, seed: int) -> None:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    clips = folder / "clips"
    if not (clips / "captions.jsonl").is_file():
        corpus(clips)

    reference = folder / "undisturbed.json"
    if not reference.is_file():
        with own_disk(folder / "disk") as disk:
            disturbed(folder / "undisturbed", disk, clips, [], rng)
            reference.write_text(json.dumps(facts(disk)))
    wanted = json.loads(reference.read_text())

    scratch = Path(tempfile.mkdtemp(dir=folder))
    kills = [KILLS[(seed + number) % len(KILLS)] for number in range(num_kills)]
    done = []
    for number in range(10 * num_kills):
        if not kills:
            break
        with own_disk(folder / "disk") as disk:
            told = disturbed(scratch / str(number), disk, clips, kills, rng)
            found = json.loads(json.dumps(facts(disk)))
        for name in ("shards", "metrics", "weights"):
            assert found[name] == wanted[name], name
        more = sorted(set(found["files"]) - set(wanted["files"]))
        fewer = sorted(set(wanted["files"]) - set(found["files"]))
        assert not more, more
        assert not fewer, fewer
        done += told
        print(f"run {number}: {len(told)} kills: everything as undisturbed", flush=True)
    print(f"{len(done)} kills: every video once, shards, recall, weights and files as undisturbed")


if __name__ == "__main__":
    given = sys.argv[2:]
    main(Path(sys.argv[1]).absolute(), int(given[0]) if given else 10, int(given[1]) if len(given) > 1 else 0)
