"""Which precision a machine computes a training run in."""

import os
from typing import Literal

import torch

from vopcore.retriever import Precision

PrecisionSetting = Literal["auto", "fp32", "tf32", "bf16"]

# Ampere: the first with bf16 and tf32 products.
BF16_CAPABILITY = (8, 0)


def resolve(setting: PrecisionSetting, device: torch.device) -> PrecisionSetting:
    """`auto` as what this device is good at: bf16 on a GPU of compute capability 8.0 or more, else fp32.

    Older GPUs have neither bf16 nor tf32 products.
    """
    if setting != "auto":
        return setting
    if device.type != "cuda":
        return "fp32"

    capability = torch.cuda.get_device_capability(device)
    return "bf16" if capability >= BF16_CAPABILITY else "fp32"


def apply(resolved: PrecisionSetting) -> Precision:
    """Set up this process for a precision, before it computes; returns that of the towers, for a `Retriever`.

    tf32 is fp32 whose products round their factors to 10 bits, a setting of the whole process.
    """
    # As torch asks for where an LSTM is to give the same numbers each time; read when cuBLAS starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    allowed = resolved == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed

    # The towers know two precisions: tf32 is fp32 to them.
    return "bf16" if resolved == "bf16" else "fp32"
