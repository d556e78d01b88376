"""What every test may count on: no network, one thread a process, a Ray without the token of this machine."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: more threads only wait for each other
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="module")
def own_ray():
    """One Ray for all tests of a module: starting it takes longer than most of them."""
    from support.local_ray import local_ray  # here, as most tests do without Ray and its import

    with local_ray():
        yield
