"""Patches of a frame that are merged in every layer, as TempMe and ToMe do, under methods that let them be.

Fewer tokens cost less in tuning and in searching; nothing is trained for it, so a frozen CLIP can do it too.
"""

from torch import nn

from vopcore.clip import CLIP, Block, towers
from vopcore.clip.wrap import Prompted
from vopcore.methods.base import NEEDS, require
from vopcore.methods.tempme import FrameMerging


def merge_patches(
    clip: CLIP,
    name: str,
    count: int,
) -> None:
    """Let each vision block but the last merge `count` patches of a frame between its attention and its MLP.

    The attention knows how many patches a token stands for; prompts and the class token are never merged.
    Raises ValueError, one line, for a tower or a method (`name`) under which that cannot be done.
    """
    require("merge", count, count >= 1, "at least 1")
    vision = towers(clip).vision
    for need in ("reads_class_token", "has_halves"):
        if not vision.has_blocks or not getattr(vision, need):
            raise ValueError(f"merge {NEEDS[need]}")

    for number, block in enumerate(vision.blocks):
        # the last one too, as it must know the sizes
        merged = None if number == vision.layers - 1 else count
        vision.blocks[number] = _with_merging(block, name, merged)


def _with_merging(
    block: nn.Module,
    name: str,
    count: int | None,
) -> nn.Module:
    """The same block, whose innermost one merges."""
    is_own = not isinstance(block, Block) and hasattr(block.attn, "project")
    if is_own:
        return FrameMerging(block, None, count)

    if not isinstance(block, Prompted) or block.across_frames or block.keep:
        raise ValueError(f"merge: {name} computes the vision tower's attention itself, so nothing is merged")
    block.block = _with_merging(block.block, name, count)
    return block
