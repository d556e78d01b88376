"""VoP: prompts in every layer of both towers; video prompts that know position, context and function.

Text-video co-operative prompt tuning, https://arxiv.org/abs/2211.12764 (3.2 the prompts, 3.3 the video
prompts). Prompts are drawn from a normal of std 0.02 and thrown away after each layer; words and
patches keep CLIP's positions, prompts have none. Order in a layer: `[CLS, generic prompts, specific
prompts, patches]`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from vopcore.clip import CLIP, Prompted, Prompts, Tower, towers, wrap
from vopcore.methods.base import first_layers, fits_context, require
from vopcore.methods.prompt import prompt
from vopcore.methods.video_prompts import (
    ContextModel,
    ContextPrompted,
    FramePositions,
    FramePrompts,
    Joint,
)

# (layer, its block) -> what takes the block's place
Make = Callable[[int, nn.Module], nn.Module]


@dataclass(frozen=True, kw_only=True)
class DeepPrompts:
    """What the members of the family share: text prompts, and a number of video prompts per layer.

    text_prompts, vision_prompts: per layer; 0 for none. text_layers: only the first ones; None is all.
    """

    text_prompts: int = 8
    vision_prompts: int = 8
    text_layers: int | None = None

    def __post_init__(self) -> None:
        for field in ("text_prompts", "vision_prompts", "text_layers", "vision_layers"):
            value = getattr(self, field, None)
            require(field, value, value is None or value >= 0, "at least 0")

    def attach(self, clip: CLIP, frames: int) -> None:
        """Prompt the text tower, then the vision tower."""
        vision, text, context_length = towers(clip)
        fits_context("text_prompts", self.text_prompts, context_length)
        prompt(
            text,
            self.text_prompts,
            first_layers("text_layers", self.text_layers, text),
        )
        self.attach_vision(vision, frames)

    def attach_vision(self, vision: Tower, frames: int) -> None:
        """Prompt the vision tower."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class VoP(DeepPrompts):
    """Generic prompts in both towers (VoP 3.2). vision_layers: only the first ones; None is all.

    With `pooling: query_aware` this is VL-Prompt of the Cross-Modal Adapter paper.
    """

    vision_layers: int | None = None

    def attach_vision(self, vision: Tower, frames: int) -> None:
        """The same prompts for all frames."""
        prompt(
            vision,
            self.vision_prompts,
            first_layers("vision_layers", self.vision_layers, vision),
        )


@dataclass(frozen=True, kw_only=True)
class SpecificPrompts(DeepPrompts):
    """Some of the video prompts are specific to the frame. specific: how many of `vision_prompts`."""

    specific: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = f"in 0..{self.vision_prompts}, vision_prompts"
        require(
            "specific",
            self.specific,
            0 <= self.specific <= self.vision_prompts,
            limit,
        )


@dataclass(frozen=True, kw_only=True)
class VoPP(SpecificPrompts):
    """Position: specific prompts looked up by the frame's index in its video, per layer (VoP 3.3, VoP^P)."""

    @property
    def fixed_frames(self) -> bool:
        """The table has rows for each frame."""
        return True

    def attach_vision(self, vision: Tower, frames: int) -> None:
        """A table of prompts in each layer."""
        wrap(vision, self.prompted(vision, frames))

    def prompted(self, vision: Tower, frames: int) -> Make:
        """How one layer is prompted."""
        generic = self.vision_prompts - self.specific
        return lambda i, block: Prompted(block, FramePrompts(vision, generic, self.specific, frames))


@dataclass(frozen=True, kw_only=True)
class VoPC(SpecificPrompts):
    """Context: specific prompts that a model makes from the CLS tokens of all frames, in order (VoP 3.3,
    VoP^C).

    context: the model; one for all layers. `bilstm`, `lstm`, or `transformer` (4 layers; it learns a
    position per frame, so it knows one number of frames).
    """

    context: Literal["bilstm", "lstm", "transformer"] = "bilstm"

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = ("bilstm", "lstm", "transformer")
        require(
            "context",
            self.context,
            self.context in kinds,
            f"one of {', '.join(kinds)}",
        )

    @property
    def fixed_frames(self) -> bool:
        """Only the transformer's positions are counted."""
        return self.context == "transformer" and self.specific > 0

    def attach_vision(self, vision: Tower, frames: int) -> None:
        """One model for the prompts of every layer."""
        wrap(vision, self.prompted(vision, frames))

    def prompted(self, vision: Tower, frames: int) -> Make:
        """How one layer is prompted."""
        generic = self.vision_prompts - self.specific
        if not self.specific:
            return lambda i, block: Prompted(block, Prompts(vision, generic))
        model = ContextModel(vision, self.context, self.specific, frames)
        return lambda i, block: ContextPrompted(block, Prompts(vision, generic), model)


@dataclass(frozen=True, kw_only=True)
class VoPF(DeepPrompts):
    """Function: the last layers attend over all frames of a video at once (VoP 3.3, VoP^F).

    spatial_layers: K_s; layers up to it see one frame each, as `vop`; those after it one sequence per video,
    `[CLS of each frame, prompts, patches of each frame]`, where frames are told apart by a position of
    their own. With K_s = the depth of the tower this is `vop`.
    """

    spatial_layers: int = 8

    @property
    def fixed_frames(self) -> bool:
        """The frame positions are counted."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            "spatial_layers",
            self.spatial_layers,
            self.spatial_layers >= 0,
            "at least 0",
        )

    def attach_vision(self, vision: Tower, frames: int) -> None:
        """Layers before and after K_s."""
        first_layers("spatial_layers", self.spatial_layers, vision)
        early = range(self.spatial_layers)
        wrap(vision, self.early(vision, frames), early)
        wrap(
            vision,
            self.joint(vision, frames),
            range(self.spatial_layers, vision.layers),
        )

    def early(self, vision: Tower, frames: int) -> Make:
        """How a layer up to K_s is prompted."""
        return lambda i, block: Prompted(block, Prompts(vision, self.vision_prompts))

    def joint(self, vision: Tower, frames: int) -> Make:
        """How a layer after K_s is prompted."""

        def make(i: int, block: nn.Module) -> Joint:
            positions = FramePositions(vision, frames) if i == self.spatial_layers else None
            return Joint(block, Prompts(vision, self.vision_prompts), positions)

        return make


@dataclass(frozen=True, kw_only=True)
class VoPFP(VoPF, VoPP):
    """Function and position: `vop_p` in the first K_s layers, `vop_f` after them (VoP 3.3, VoP^F+P)."""

    def early(self, vision: Tower, frames: int) -> Make:
        """How a layer up to K_s is prompted."""
        return self.prompted(vision, frames)


@dataclass(frozen=True, kw_only=True)
class VoPFC(VoPF, VoPC):
    """Function and context: `vop_c` in the first K_s layers, `vop_f` after them (VoP 3.3, VoP^F+C)."""

    def early(self, vision: Tower, frames: int) -> Make:
        """How a layer up to K_s is prompted."""
        return self.prompted(vision, frames)
