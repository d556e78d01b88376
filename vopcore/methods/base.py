"""What a tuning method is, and how it says that an option is out of range."""

from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn
from torch.nn.utils import parametrize

from vopcore.clip import CLIP, Tower

NEEDS = {  # a property of the vision tower, and what it means to lack it
    "reads_class_token": "reads the class token of each frame, and this vision tower pools its patches",
    "has_halves": "changes tokens inside the blocks of open_clip's own vision transformers, and this vision"
    " tower is built otherwise",
}


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass; its fields are its hyperparameters.

    One that cannot work on every vision tower with blocks names in `needs`, a tuple in its class, what must
    be true of the tower (see NEEDS).

    One whose tuned weights hold an entry per frame, so that they know one number of frames, says so with
    `fixed_frames = True` in its class; then no other number reaches it.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def attach(self, clip: CLIP, frames: int) -> None:
        """Thaw parameters of a frozen CLIP, or wrap its blocks, for videos of `frames` frames.

        Raises ValueError for options that do not fit this CLIP.
        """


def require(
    field: str,
    value: object,
    allowed: bool,
    wanted: str,
) -> None:
    """ValueError that names the field, its value and what would be right, unless `allowed`."""
    if not allowed:
        raise ValueError(f"{field}: {value} must be {wanted}")


def read_as_changed(
    module: nn.Module,
    name: str,
    change: nn.Module,
) -> None:
    """Let `module.name` read as what `change` makes of the weight; the weight itself stays frozen."""
    parametrize.register_parametrization(module, name, change)
    weight = module.get_parameter(f"parametrizations.{name}.original")
    weight.requires_grad_(False)


def unmet_needs(method: Method | type[Method], vision: Tower) -> list[str]:
    """What `method` needs and this vision tower has not: keys of NEEDS."""
    return [need for need in getattr(method, "needs", ()) if not getattr(vision, need)]


def check_needs(
    name: str,
    method: Method,
    vision: Tower,
) -> None:
    """ValueError, one line, if the vision tower is not one that this method can tune."""
    if not vision.has_blocks:
        _ = vision.blocks  # says which methods work with it
    for need in unmet_needs(method, vision):
        raise ValueError(f"{name} {NEEDS[need]}")


def first_layers(
    field: str,
    layers: int | None,
    tower: Tower,
) -> range:
    """The first `layers` blocks of a tower, all of them if None."""
    if layers is None:
        return range(tower.layers)
    limit = f"at most {tower.layers}, the layers of the {tower.name} tower"
    require(field, layers, layers <= tower.layers, limit)
    return range(layers)


def fits_context(
    field: str,
    prompts: int,
    context_length: int,
) -> None:
    """Text prompts take no word's position, but a text of nothing but prompts is surely a slip."""
    room = context_length - 2
    require(
        field,
        prompts,
        prompts <= room,
        f"at most {room}: a context of {context_length} but start and end",
    )
