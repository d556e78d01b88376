"""What vopcore asks of a CLIP, and what `tune` notes on it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

# A module of open_clip, timm or transformers. These libraries have no types, and torch gives every attribute
# of a plain nn.Module the type `Tensor | Module`, of which nothing can be called or computed with.
LibraryModule = Any


# What autograd hands to both halves of a function. It takes attributes of any name, which torch cannot type.
AutogradContext = Any


@dataclass(frozen=True)
class Tuning:
    """How a CLIP was tuned: kept on it as `clip.tuning`.

    `frames` per video; if `fixed_frames`, the tuned weights know no other number. `pooling` is known once
    read back from a file. `backbone` is the `frozen_hash` of before, where `keep_in_bf16` has rounded.
    `merge`: patches of a frame that each layer merges.
    """

    name: str
    method: Any  # a `Method`, whose file imports this package
    frames: int
    fixed_frames: bool
    pooling: str | None = None
    backbone: str | None = None
    merge: int = 0


class CLIP(Protocol):
    """What vopcore asks of a CLIP: the two classes of open_clip, and its CoCa. Each is an nn.Module.

    `tuning` is there once it is tuned. `model_name` and `text_settings` (the `text_cfg` of its config) are
    there if `load` has built it.
    """

    visual: LibraryModule
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    context_length: int
    vocab_size: int
    training: bool
    tuning: Tuning
    model_name: str
    text_settings: dict[str, Any]

    def encode_image(self, image: Tensor) -> Tensor:
        """Pixels Float [N, 3, H, W], normalised -> features [N, D]"""

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids Int [N, L] -> features [N, D]"""

    # The rest is what every nn.Module has.

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def named_parameters(
        self,
        prefix: str = "",
        recurse: bool = True,
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, nn.Parameter]]: ...
    def buffers(self, recurse: bool = True) -> Iterator[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def get_submodule(self, target: str) -> nn.Module: ...
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...  # noqa: ANN401 - torch's report
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def to(self, device: str | torch.device) -> Self: ...
    def to_empty(self, *, device: str | torch.device) -> Self: ...
