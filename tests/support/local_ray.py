"""A Ray of a test's own, with the two CPUs that every test counts on."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from support import ROOT


@contextmanager
def local_ray(**environment: str) -> Iterator[None]:
    """Runs Ray while the block runs; `environment` is added to that of its workers.

    Its sockets lie in a folder of their own, as a path of theirs has at most 107 bytes.
    """
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    ray.init(
        _temp_dir=folder,
        include_dashboard=False,
        num_cpus=2,
        runtime_env={"env_vars": variables},
        log_to_driver=False,  # as the commands have it: their last line is looked at
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
