"""What every test may count on: no network, one thread a process, a Ray without the token of this machine."""

import os
import tempfile

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: more threads only wait for each other
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="module")
def short_lived_folder_of_ray():
    """Ray's sockets want a short path: for the commands that a module starts in processes of their own."""
    temporary = tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
    with temporary as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.fixture(scope="module")
def own_ray():
    """One Ray for all tests of a module: starting it takes longer than most of them."""
    from support.local_ray import local_ray  # here, as most tests do without Ray and its import

    with local_ray():
        yield
