"""Makes this process believe in a GPU, and records what is done on it. Import before vopcore."""

import traceback
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
VIEWS = {
    "view", "_unsafe_view", "reshape", "expand", "slice", "select", "transpose", "permute", "t", "unsqueeze",
    "squeeze", "split", "chunk", "alias", "detach", "unbind", "as_strided", "split_with_sizes",
    "_reshape_alias", "lift_fresh", "diagonal", "unfold", "view_as", "movedim",
}  # fmt: skip
ALLOCATIONS = ("empty", "new_empty")
VALUES = {torch.bool: True, torch.int64: 31, torch.int32: 31, torch.uint8: 1}  # of what is asked on the host


def pretend() -> None:
    """Patch what torch asks of a GPU in Python."""
    torch.cuda._lazy_init = lambda: None
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.is_bf16_supported = lambda *arguments, **options: True
    torch.cuda.manual_seed_all = lambda seed: None
    torch.cuda.get_rng_state = lambda *arguments: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.set_rng_state = lambda *arguments: None
    torch.cuda.max_memory_allocated = lambda *arguments: 0
    torch.nn.LSTM.forward = _lstm
    torch.nn.LSTM.flatten_parameters = lambda self: None


def _lstm(self: torch.nn.LSTM, x: torch.Tensor, hx: None = None) -> tuple[torch.Tensor, tuple]:
    """cuDNN's has no fake: the shapes of its result, through operations with gradients.

    As ATen's autocast, which knows fp16 alone for recurrent layers.
    """
    weights = self._flat_weights
    if torch.is_autocast_enabled("cuda"):
        x = x.half()
        weights = [weight.half() for weight in weights]
    if any(weight.dtype != x.dtype or weight.device != x.device for weight in weights):
        raise RuntimeError(f"lstm: input {x.dtype} on {x.device}, weights {weights[0].dtype}")
    into_gates, from_state, *biases = weights
    with torch.autocast("cuda", enabled=False):
        gates = x @ into_gates.t() + sum(biases)
        out = torch.tanh(gates @ from_state)
    state = out[:, -1].unsqueeze(0)
    return out, (state, state)


@dataclass
class Recorder(TorchDispatchMode):
    """Operations, bytes and synchronisations on the device inside the block, and the memory they hold."""

    operations: Counter = field(default_factory=Counter)
    num_bytes: int = 0
    syncs: list[str] = field(default_factory=list)
    peak: int = 0
    all_true: bool = True  # what a bool on the CPU answers: whether all frames are real

    def __post_init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if func is aten._local_scalar_dense.default:
            return self._item(args[0])
        if func is aten.equal.default:
            self.syncs.append(f"equal at {_caller()}")
            return True
        if name == "is_pinned":
            return False
        if name == "record_stream":  # has no fake
            return None

        out = func(*args, **kwargs)
        inputs = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        outputs = [tensor for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)]
        for tensor in outputs:
            self._hold(tensor)

        if name in ("_to_copy", "copy_") and self._crosses(name, args, kwargs, inputs, outputs):
            return out
        if name in VIEWS or name.startswith(ALLOCATIONS) or name == "device":
            return out
        if any(tensor.is_cuda for tensor in (*inputs, *outputs)):
            self.operations[name] += 1
            self.num_bytes += _moved(name, inputs, outputs)
        return out

    def _item(self, tensor: torch.Tensor) -> Any:
        if tensor.is_cuda:
            self.syncs.append(f"item {tensor.dtype} at {_caller()}")
            self.operations["item"] += 1
        if tensor.device.type == "cpu" and tensor.dtype == torch.bool:
            return self.all_true
        return VALUES.get(tensor.dtype, 0.5)

    def _crosses(self, name: str, args: Any, kwargs: Any, inputs: list, outputs: list) -> bool:
        """A copy between host and device; it stops the host unless it may run on its own."""
        source = inputs[0] if name == "_to_copy" else inputs[1]
        target = outputs[0] if outputs else inputs[0]
        if source.device.type == target.device.type:
            return False
        runs_alone = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
        if not runs_alone or not target.is_cuda:
            self.syncs.append(f"copy to {target.device.type} at {_caller()}")
        return True

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if not tensor.is_cuda or storage._cdata in self._live:
            return
        self._live[storage._cdata] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self._now -= self._live.pop(key, 0)


def _moved(name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> int:
    """Bytes read and written; an expanded tensor is read once."""
    read = sum(_nbytes(tensor) for tensor in {id(tensor): tensor for tensor in inputs}.values())
    if name.endswith("_"):
        return read + (_nbytes(inputs[0]) if inputs else 0)
    return read + sum(_nbytes(tensor) for tensor in outputs)


def _nbytes(tensor: torch.Tensor) -> int:
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


def _caller() -> str:
    """The lines of vopcore, open_clip and torch's optimizers that led here, the innermost first."""
    frames = []
    for frame in reversed(traceback.extract_stack()):
        if any(part in frame.filename for part in ("/vopcore/", "open_clip", "torch/optim", "clip_grad")):
            frames.append(f"{Path(frame.filename).name}:{frame.lineno}")
    return " < ".join(frames[:3])
