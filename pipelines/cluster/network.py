"""Ray Train's workers find each other over the network that Ray itself uses.

Left alone, Gloo listens where the name of its machine leads. On a stock Debian or Ubuntu that is 127.0.1.1,
and workers on several machines would look for each other on their own.
"""

import os
import socket
import warnings
from dataclasses import dataclass
from typing import Any

import psutil
import ray.util
import torch
from ray.train.torch import TorchConfig


class UnusableGPUError(RuntimeError):
    """A worker's GPU cannot be used as its machine is; one line says why."""


class Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray's own, whose name is private
    """Sets up the process group once Gloo knows its interface."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ANN401 - Ray's, private
        """Ray calls this on the controller when all workers are there."""
        worker_group.execute(choose_interface)
        if backend_config.gpu:
            worker_group.execute(check_gpu)
        super().on_start(worker_group, backend_config)
        if backend_config.mailbox is not None:
            backend_config.mailbox.workers_begin.remote()

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ANN401 - as above
        """Ray calls this when the workers go, at the end or to begin anew."""
        if backend_config.mailbox is not None:
            backend_config.mailbox.workers_end.remote()
        super().on_shutdown(worker_group, backend_config)


@dataclass
class OverRaysNetwork(TorchConfig):
    """Ray's TorchConfig with the Backend above.

    gpu: every worker must find one. mailbox: the Mailbox that hears when workers begin and end.
    """

    gpu: bool = False
    mailbox: Any = None

    @property
    def backend_cls(self) -> type[Backend]:
        """Ray asks for it."""
        return Backend


def check_gpu() -> None:
    """Say what is wrong with a worker's GPU before NCCL does in words of its own.

    Raises UnusableGPUError, with torch's reason: a driver that is too old for it, or no driver.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_usable = torch.cuda.is_available()
    if is_usable:
        return

    # torch says why in a warning, followed by the line of C++ that gave it.
    reasons = [str(warning.message).split(" (Triggered")[0] for warning in caught]
    reason = " ".join(reasons) or "torch finds no NVIDIA driver"
    raise UnusableGPUError(
        f"{socket.gethostname()}: the GPU cannot be used by torch {torch.__version__}: {reason}; update its"
        " driver, or install the torch build for the CUDA version of the driver"
    )


def choose_interface() -> None:
    """Name to Gloo the interface with the address by which Ray knows this machine, unless it is named."""
    own_address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own_address for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
