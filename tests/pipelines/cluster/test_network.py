"""Gloo is told the interface that Ray uses, and what a user says wins; a GPU that cannot be used is named."""

import os
import re
import subprocess
import sys

import psutil
import pytest
import ray.util
import torch
from support import ROOT, fake_cuda

from pipelines.cluster.network import Backend, OverRaysNetwork, choose_interface


def test_the_interface_is_that_of_rays_address(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is put back afterwards
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface()
    chosen = os.environ["GLOO_SOCKET_IFNAME"]
    assert ray.util.get_node_ip_address() in [a.address for a in psutil.net_if_addrs()[chosen]]


def test_an_interface_that_is_named_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine0")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine0"


def test_ray_train_takes_our_backend_with_its_own_settings():
    config = OverRaysNetwork(timeout_s=7)
    assert (config.backend_cls, config.timeout_s) == (Backend, 7)


CHECK = """
from pipelines.cluster.network import UnusableGPUError, check_gpu
try:
    check_gpu()
    print("a GPU that can be used")
except UnusableGPUError as error:
    print(error)
"""


def check_gpu(**environment: str) -> str:
    """What `check_gpu` says in a process with these variables."""
    own = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run([sys.executable, "-c", CHECK], env=own, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(not fake_cuda.can_build(), reason="needs gcc and torch's CUDA headers")
def test_a_driver_that_is_too_old_for_torch_is_called_a_driver(tmp_path):
    fake_cuda.build(tmp_path)
    runtime = fake_cuda.variables(tmp_path)
    assert check_gpu(**runtime) == "a GPU that can be used"
    said = check_gpu(**runtime, FAKE_CUDA_DRIVER="11040")
    assert re.search(
        r"the GPU cannot be used by torch .* driver on your system is too old \(found version 11040", said
    )
    assert said.endswith("; update its driver, or install the torch build for the CUDA version of the driver")
    assert "\n" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a driver")
def test_a_machine_without_a_driver_is_told_so():
    said = check_gpu()
    assert "the GPU cannot be used by torch" in said
    assert "no NVIDIA driver" in said
