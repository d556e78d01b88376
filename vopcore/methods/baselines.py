"""Methods that add nothing and choose which of CLIP's own parameters to train: VoP's baselines (paper 4.1).

Prompt tuning for video retrieval: https://arxiv.org/abs/2211.12764
"""

from dataclasses import dataclass

from vopcore.clip import CLIP, feature_parameters, thaw, towers
from vopcore.methods.base import require


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """CLIP as it is (CLIP4Clip 4.3, zero-shot); nothing to train."""

    def attach(self, clip: CLIP, frames: int) -> None:
        """Nothing to do."""


@dataclass(frozen=True, kw_only=True)
class Full:
    """Every parameter, logit_scale included (VoP 4.1, "Full"); not the bias of a sigmoid loss."""

    def attach(self, clip: CLIP, frames: int) -> None:
        """Thaw everything."""
        thaw(feature_parameters(clip).values())


@dataclass(frozen=True, kw_only=True)
class Bias:
    """Every bias term, those inside the attention included (VoP 4.1, "Bias")."""

    def attach(self, clip: CLIP, frames: int) -> None:
        """Thaw the `bias` and `in_proj_bias` of each layer; EVA's attention has a `q_bias` and a `v_bias`."""
        endings = (".bias", ".in_proj_bias", ".q_bias", ".v_bias")
        biases = []
        for name, parameter in feature_parameters(clip).items():
            if name.endswith(endings):
                biases.append(parameter)
        thaw(biases)


@dataclass(frozen=True, kw_only=True)
class Proj:
    """The projections of both towers into the joint space (VoP 4.1, "Proj")."""

    def attach(self, clip: CLIP, frames: int) -> None:
        """Thaw `visual.proj` and the text projection."""
        vision, text, _ = towers(clip)
        thaw([*vision.output_projection(), *text.output_projection()])


@dataclass(frozen=True, kw_only=True)
class Partial:
    """The last layers of both towers (VoP 4.1, "Partial": one).

    layers: how many; 0 to the depth of the shallower tower. heads: also what stands behind the last layer
    of a tower: its final norm, its projection, and the temperature. CLIP4Clip's curves in Cross-Modal
    Adapter freeze the first 0, 6, 9, 11, 12 of 12 layers and train the heads, 657,921 parameters of ViT-B/32.
    """

    layers: int = 1
    heads: bool = False

    def __post_init__(self) -> None:
        require("layers", self.layers, self.layers >= 0, "at least 0")

    def attach(self, clip: CLIP, frames: int) -> None:
        """Thaw the last blocks."""
        vision, text, _ = towers(clip)
        depth = min(vision.layers, text.layers)
        limit = f"at most {depth}, the layers of the shallower tower"
        require("layers", self.layers, self.layers <= depth, limit)

        for tower in (vision, text):
            for block in tower.blocks[tower.layers - self.layers :]:
                thaw(block.parameters())
            if self.heads:
                thaw(tower.head())
        if self.heads:
            thaw([clip.logit_scale])
