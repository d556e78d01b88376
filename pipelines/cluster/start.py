"""Join the Ray of this cluster, or start one on this machine."""

import logging
import os
import signal
import threading
from pathlib import Path

import ray

from vopcore.config import RunConfig

ROOT = Path(__file__).parents[2]


def start_ray(config: RunConfig) -> None:
    """Join the cluster this runs on, or start a Ray on this machine; nothing listens beyond it."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    workers = {"env_vars": {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" in os.environ:
        ray.init(runtime_env=workers, **quiet)
    else:
        needed = config.resources.workers * config.resources.cpus_per_worker
        cpus = max(os.cpu_count() or 1, needed)
        ray.init("local", num_cpus=cpus, include_dashboard=False, runtime_env=workers, **quiet)
    if threading.current_thread() is threading.main_thread():  # Ray takes SIGTERM and prints a stack
        signal.signal(signal.SIGTERM, signal.default_int_handler)
