"""A small corpus with its config, and a Ray head with dashboard that jobs can be submitted to."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file
from support import ROOT

from vopcore.datasets import shapes

CONFIG = """
name: small
output: {folder}/out
data: {{dataset: folder, root: {root}}}
video: {{frames: 4, size: 32, max_failed: 20%}}
clip: {{model: conf/tiny_clip.json, pretrained: null, words: 16}}
train: {{epochs: {epochs}, batch_size: 8, lr: 5e-3}}
methods: {{vop_p: {{}}}}
resources: {{workers: 2}}
"""


def corpus(folder: Path) -> Path:
    """34 clips, 24 of them to train on, 8 to test on and 2 that cannot be decoded."""
    for _ in shapes.render(folder, 24, 4, 0):
        pass
    return folder


def config(folder: Path, root: Path, epochs: int = 4) -> Path:
    """A YAML file in `folder` that tunes vop_p on the clips in `root` and keeps all it makes in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "small.yaml"
    file.write_text(CONFIG.format(folder=folder, root=root, epochs=epochs))
    return file


def metrics(folder: Path) -> dict[str, float]:
    """Every number of the one run in `folder` that does not measure time or memory."""
    (file,) = (folder / "out/results").glob("*.json")
    numbers = json.loads(file.read_text())["metrics"]
    return {name: n for name, n in numbers.items() if not name.startswith(("seconds/", "memory/"))}


def weights(folder: Path) -> dict[str, bytes]:
    """The tuned weights that the one run in `folder` ended with, bit by bit."""
    (run,) = [path for path in (folder / "out/runs").iterdir() if path.is_dir()]
    last = load_file(max(run.glob("checkpoint_*/tuned.safetensors")))
    return {name: tensor.tobytes() for name, tensor in last.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(happened, what: str, seconds: float = 300) -> None:
    """Poll until `happened()`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@contextmanager
def head(checkout: Path, environment: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """`ray start --head` from the folder `checkout`, as cluster.yaml does.

    Yields the dashboard's address and Ray's temporary folder."""
    dashboard = free_port()
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        command = ["ray", "start", "--head", "--block", f"--port={free_port()}", f"--temp-dir={temporary}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=2"]
        command += ["--object-store-memory=200000000", "--disable-usage-stats"]
        command += [f"--ray-client-server-port={free_port()}"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        log = Path(temporary) / "start.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                command, cwd=checkout, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{dashboard}"
            until(lambda: answers(url) or process.poll() is not None, "the dashboard")
            assert process.poll() is None, log.read_text()
            yield url, Path(temporary)
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    if process.poll() is None:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            if member.is_running():
                member.kill()
    process.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=5)
    except urllib.error.HTTPError:  # it wants the token
        return True
    except OSError:
        return False
    return True


def shell_environment(**more: str) -> dict[str, str]:
    """As of somebody who has activated the virtual environment, and no PYTHONPATH."""
    ours = ("PYTHONPATH", "RAY_ADDRESS", "RAY_TMPDIR")
    plain = {name: value for name, value in os.environ.items() if name not in ours}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return plain | {"PATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"} | more


def read_log(folder: Path) -> str:
    """What a command that was started with the config in `folder` has said so far."""
    return (folder / "log").read_text()


def start(file: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    """The command in the background; what it says goes to `log` beside the config."""
    with (file.parent / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "pipelines/run.py", str(file), *overrides],
            cwd=ROOT,
            env=shell_environment(RAY_AUTH_MODE="disabled", **environment),
            stdout=log,
            stderr=log,
        )


class Nodes:
    """A head without work, and machines that come and go."""

    def __init__(self, temporary: str) -> None:
        system = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        head = {
            "num_cpus": 0,
            "temp_dir": temporary,
            "object_store_memory": 10**8,
            "include_dashboard": False,
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            patch.setenv("RAY_TMPDIR", temporary)  # where it notes its address, in a folder it does not make
            (Path(temporary) / "ray").mkdir()
            self._cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": system})
        self.address = self._cluster.address

    def add(self, **resources):
        return self._cluster.add_node(object_store_memory=10**8, **({"num_cpus": 1} | resources))

    def kill(self, node) -> None:
        """As if its power went: raylet and workers at once."""
        raylet = raylet_of(node)
        family = [raylet, *raylet.children(recursive=True)]
        for process in family:
            process.send_signal(signal.SIGSTOP)
        for process in family:
            process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


def raylet_of(node) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def doing(node, what: str) -> bool:
    """Whether a worker of the node is busy with `what`."""
    try:
        names = [" ".join(p.cmdline()) for p in raylet_of(node).children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    return any(name.startswith("ray::") and what in name for name in names)
