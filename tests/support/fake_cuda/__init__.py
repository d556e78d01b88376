"""Training on tensors that say they are on CUDA, without a GPU.

torch's FakeTensorMode knows shapes, dtypes and devices and computes nothing. Its autograd and streams ask a
CUDA runtime, for which a stand-in of two C files is compiled. This finds tensors left on the CPU, wrong
dtypes under autocast, host synchronisations, operations, bytes and memory; not numbers, kernels or speed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from support import ROOT

HERE = Path(__file__).parent


def can_build() -> bool:
    """A C compiler and the headers of torch's CUDA build are there."""
    return shutil.which("gcc") is not None and header_folder() is not None


def header_folder() -> Path | None:
    """Where the wheels of torch's CUDA build have `driver_types.h`."""
    packages = Path(torch.__file__).parents[1] / "nvidia"
    return next((path.parent for path in packages.rglob("driver_types.h")), None)


def build(folder: Path) -> None:
    """Compile the stand-ins for the runtime and the driver into `folder`."""
    compiler = ["gcc", "-shared", "-fPIC", "-w"]
    runtime = [f"-I{HERE}", f"-I{header_folder()}", str(HERE / "cudart.c")]
    subprocess.run([*compiler, *runtime, "-o", str(folder / "cudart.so")], check=True)
    subprocess.run([*compiler, str(HERE / "libcuda.c"), "-o", str(folder / "libcuda.so.1")], check=True)


def variables(runtime: Path) -> dict[str, str]:
    """Of the environment of a process that is to find the stand-ins in the folder of `build`."""
    return {"LD_LIBRARY_PATH": str(runtime), "LD_PRELOAD": str(runtime / "cudart.so")}


def run(module: str, *arguments: str, runtime: Path | None = None) -> Any:
    """Run `python -m MODULE` in a process of its own; what it prints last, read as JSON.

    runtime: the folder of `build`; without it there is no autograd on the device.
    """
    environment = dict(os.environ, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}", OMP_NUM_THREADS="1")
    if runtime is not None:
        environment |= variables(runtime)
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
