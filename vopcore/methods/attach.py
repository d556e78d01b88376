"""Tune a CLIP by a method; what of it is tuned."""

from torch import nn

from vopcore.clip import CLIP, Tuning, freeze, towers
from vopcore.methods.base import Method
from vopcore.methods.merging import merge_patches


def tune(
    clip: CLIP,
    method: Method,
    frames: int,
    merge: int = 0,
) -> CLIP:
    """Freeze `clip`, attach `method` to it for videos of `frames` frames, and return it.

    merge: patches of a frame that each layer merges (see `merging`); 0: none.

    Weights must be loaded before; the new parameters take the dtype and device of the CLIP and are drawn from
    torch's global generator. Raises ValueError for options that do not fit this CLIP, or a CLIP that is
    tuned.
    """
    if hasattr(clip, "tuning"):
        raise ValueError(
            f"this CLIP is tuned by {clip.tuning.name}; tune a fresh one, or `share(clip)` first"
        )
    if frames < 1:
        raise ValueError(f"frames: {frames} must be at least 1")
    vision, text, _ = towers(clip)
    freeze(clip)
    for tower in (vision, text):
        tower.prepare_for_training()
    method.attach(clip, frames)
    if merge:
        merge_patches(clip, method_name(method), merge)

    clip.tuning = Tuning(
        method_name(method),
        method,
        frames,
        getattr(method, "fixed_frames", False),
        merge=merge,
    )
    return clip


def tuned(clip: CLIP) -> dict[str, nn.Parameter]:
    """The parameters that are tuned, by name, each once: the checkpoint, and what is counted.

    Works on a CLIP and on a module around it; there each name has the module's prefix.
    """
    return {name: parameter for name, parameter in clip.named_parameters() if parameter.requires_grad}


def method_name(method: Method) -> str:
    """The name under which METHODS holds the class of `method`; the name of the class if it is not there."""
    from vopcore.methods import METHODS  # which imports this file

    return next(
        (name for name, cls in METHODS.items() if cls is type(method)),
        type(method).__name__,
    )
