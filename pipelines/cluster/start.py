"""Join the Ray of this cluster, or start one on this machine."""

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import ray._private.worker
from ray._private import ray_constants
from ray._private.services import find_bootstrap_address

from vopcore.config import ConfigError, RunConfig

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds for the Ray at RAY_ADDRESS to answer
# What Ray adds to its folder at most.
LONGEST_SOCKET = "/ray/session_2026-11-27_10-46-15_123456_4194304/sockets/plasma_store"

# characters: Linux allows 107 for the path of a socket
MAX_FOLDER = 107 - len(LONGEST_SOCKET)
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def start_ray(config: RunConfig) -> None:
    """Join the cluster that RAY_ADDRESS names, or start a Ray on this machine that listens on it alone.

    Raises ConfigError where nothing answers at RAY_ADDRESS.
    """
    resources = config.resources
    min_cpus = resources.workers * resources.cpus_per_worker
    join_ray(min_cpus)


def join_ray(min_cpus: int) -> None:
    """`start_ray` for work that holds `min_cpus` at once; a Ray of our own has at least so many."""
    if ray.is_initialized():
        return

    # Ray prints a page for each process that dies, at any time, also after the last line of a command.
    ray._private.worker._worker_logs_enabled = False

    # Nothing leaves the machines unasked, and workers find this checkout. Who asks for no GPU sees none: of
    # one that it sees torch takes memory.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    variables = {
        "PYTHONPATH": str(ROOT),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    }
    environment: dict[str, Any] = {"env_vars": variables}

    address = os.environ.get("RAY_ADDRESS")
    if address:
        _join(address, environment)
    else:
        _say_another_runs()
        _start_local(min_cpus, environment)

    # Ray takes SIGTERM and prints a stack. Only the main thread may take it back.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _join(address: str, environment: dict[str, Any]) -> None:
    wait_for(address)
    try:
        ray.init(runtime_env=environment, **QUIET)
    except ConnectionError as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(f"RAY_ADDRESS: cannot join the Ray at {address}: {first_line}") from None


def wait_for(address: str, patience: float = PATIENCE) -> None:
    """Wait until something listens at the `host:port` or URI `address`.

    Left alone, Ray itself waits for minutes without a word. Raises ConfigError after `patience` seconds.
    """
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host = parts.hostname
        port = parts.port
    except ValueError:
        return
    if host is None or port is None:  # `auto`, or something for Ray to judge
        return

    deadline = time.monotonic() + patience
    has_told = False
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)

        if time.monotonic() > deadline:
            raise ConfigError(
                f"RAY_ADDRESS: nothing answers at {address} ({reason}); start that Ray, or unset RAY_ADDRESS"
                " to start one on this machine"
            )

        # Once: waiting takes seconds, and a line for each says nothing new.
        if not has_told:
            print(
                f"waiting for the Ray at {address} ({reason})",
                file=sys.stderr,
                flush=True,
            )
            has_told = True
        time.sleep(1)


def _say_another_runs() -> None:
    """That a Ray was started on this machine and RAY_ADDRESS does not name it, in one line."""
    # What the last `ray start` has left; it may have ended since.
    address = find_bootstrap_address(None)
    if not address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return
    print(
        f"a Ray runs at {address}, and this command starts one of its own: RAY_ADDRESS={address} joins it",
        file=sys.stderr,
        flush=True,
    )


def _start_local(min_cpus: int, environment: dict[str, Any]) -> None:
    # Ray listens on every interface unless it knows this machine as 127.0.0.1. Its own switch for that is
    # meant for other systems; child processes read it from the environment.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False

    num_cpus = max(os.cpu_count() or 1, min_cpus)
    ray.init(
        "local",
        num_cpus=num_cpus,
        include_dashboard=False,
        runtime_env=environment,
        _temp_dir=short_folder(),
        **QUIET,
    )
    _hide_token()


def _hide_token() -> None:
    """Ray writes the token that opens it so that everybody on this machine can read it."""
    # no home folder, or nothing in it that is ours
    with suppress(OSError, RuntimeError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def short_folder() -> str | None:
    """A folder for Ray's sockets where TMPDIR is too long for them; None: Ray's own choice is fine.

    Raises ConfigError where RAY_TMPDIR itself is too long.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    if chosen and len(chosen) > MAX_FOLDER:
        raise ConfigError(
            f"RAY_TMPDIR: {chosen} has {len(chosen)} characters, more than the {MAX_FOLDER} that leave room"
            " for the names of Ray's sockets; set a shorter one, such as /tmp/ray"
        )
    if chosen or len(tempfile.gettempdir()) <= MAX_FOLDER:
        return None
    return f"/tmp/ray-{os.getuid()}"
