"""Towers without blocks of tokens that methods could reach into: ResNet, ConvNeXt, FastViT, Swin, T5 and
the like.

They are frozen or trained as a whole: `zero_shot`, `full`, `bias` and `proj` work, and what tunes the other
tower.
"""

from typing import NoReturn

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from vopcore.clip.interface import LibraryModule
from vopcore.clip.tokens import Tokens
from vopcore.clip.towers import (
    Branch,
    Projection,
    TextTower,
    Tower,
    VisionTower,
    model_name,
    parameters_of,
)

WORKS = "zero_shot, full, bias, proj"


class WholeTower(Tower):
    """A tower that is called as a whole."""

    has_blocks = False

    @property
    def module(self) -> LibraryModule:
        """What open_clip built."""
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        """Refused."""
        return self._refuse()

    @property
    def width(self) -> int:
        """Refused."""
        return self._refuse()

    @property
    def layers(self) -> int:
        """Refused."""
        return self._refuse()

    def run_block(self, block: LibraryModule, tokens: Tokens) -> Tensor:
        """Refused."""
        return self._refuse()

    def add_beside(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """Refused."""
        self._refuse()

    def add_behind(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """Refused."""
        self._refuse()

    def projections(self, block: LibraryModule) -> dict[str, Projection]:
        """Refused."""
        return self._refuse()

    def head(self) -> list[nn.Parameter]:
        """The last linear layer."""
        return self.output_projection()

    def set_grad_checkpointing(self, enabled: bool) -> None:
        """Left to the module, where it knows how."""
        if hasattr(self.module, "set_grad_checkpointing"):
            self.module.set_grad_checkpointing(enabled)

    def _refuse(self) -> NoReturn:
        inner = (
            getattr(self.module, "trunk", None) or getattr(self.module, "transformer", None) or self.module
        )
        other = "text" if self.name == "vision" else "vision"
        raise ValueError(
            f"{model_name(self.clip)}: its {self.name} tower, a {type(inner).__name__}, has no blocks that a "
            f"method can reach; with it work {WORKS} and methods that tune the {other} tower alone"
        )


class WholeVision(WholeTower, VisionTower):
    """A vision tower that is called as a whole. Its only token is the feature of a frame."""

    @property
    def module(self) -> LibraryModule:
        """What open_clip built."""
        return self.clip.visual

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels."""
        size = self.module.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def length(self) -> int:
        """Tokens of a frame."""
        return 1

    @property
    def grad_checkpointing(self) -> bool:
        """The tower does it by itself, if it can."""
        return False

    def embed(self, frames: Tensor) -> Tensor:
        """frames Float [N, 3, H, W], normalised -> their features [N, 1, D]."""
        return self.module(frames).unsqueeze(1)

    def pool(self, tokens: Tokens) -> Tensor:
        """-> features [N, D]"""
        return tokens.x[:, 0]

    def embedding(self) -> dict[str, nn.Parameter]:
        """All parameters: nothing comes behind."""
        return dict(self.module.named_parameters())

    def output_projection(self) -> list[nn.Parameter]:
        """The last linear layer of a ResNet's attention pooling, or of timm's model and of what stands
        behind it.
        """
        visual = self.module
        if isinstance(visual, ModifiedResNet):
            return list(visual.attnpool.c_proj.parameters())
        if isinstance(visual, TimmModel):
            return parameters_of([visual.trunk.get_classifier(), visual.head])
        return parameters_of([getattr(visual, "proj", None)])


class WholeText(WholeTower, TextTower):
    """A text tower that is called as a whole."""

    @property
    def module(self) -> LibraryModule:
        """What open_clip built."""
        return self.text

    def encode(self, ids: Tensor) -> Tensor:
        """ids Int [N, L] -> features [N, D]"""
        return self.clip.encode_text(ids)

    def output_projection(self) -> list[nn.Parameter]:
        """What open_clip puts behind a Hugging Face model, or the text projection."""
        text = self.module
        return parameters_of([getattr(text, "proj", None), getattr(text, "text_projection", None)])
