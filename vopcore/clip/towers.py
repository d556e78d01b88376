"""What a tower of a CLIP is to the methods, whoever built it: its blocks, and the places inside a block.

Each family of towers is a subclass in a file of its own: open_clip's transformers, timm's vision
transformers, the text transformers of Hugging Face, and towers without blocks (convolutions). Methods know
none of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vopcore.clip.interface import CLIP, LibraryModule
from vopcore.clip.tokens import Tokens

Branch = Literal["attn", "mlp"]  # the two residual branches of a block


class Projection(NamedTuple):
    """A square part of a weight of the self-attention: rows `part * D` to `(part + 1) * D` of
    `module.name`.
    """

    module: nn.Module
    name: str
    part: int


class Tower(ABC):
    """One tower of a CLIP; the blocks and weights are those of the CLIP itself.

    `has_blocks`: whether it is a row of
    blocks over tokens at all; where it is not, whatever asks for them raises ValueError.
    """

    name: Literal["vision", "text"]
    has_blocks = True

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip

    @property
    def reads_class_token(self) -> bool:
        """Whether the feature is read from the first token alone."""
        return False

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks in order, each over tokens [N, L, width]; assign to an index to wrap one."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels of a token."""

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def new(self, *shape: int) -> Tensor:
        """An uninitialised tensor with the dtype and device of this tower's weights."""
        weight = next(self.blocks.parameters())
        return torch.empty(shape, dtype=weight.dtype, device=weight.device)

    # What passes through

    @abstractmethod
    def run_block(self, block: LibraryModule, tokens: Tokens) -> Tensor:
        """A block that the tower was built with -> [N, L, D], or in training the part that is read."""

    def attend(
        self,
        block: LibraryModule,
        tokens: Tokens,
        prompts: Tensor,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """A block that the tower was built with, over `tokens` and prompts [N, p, D] of which no output is
        wanted; nobody looks at those that are hidden, Bool [N, p]. As `run_block` with the prompts behind the
        prefix; a family may compute less.
        """
        longer = tokens.insert(prompts, hidden)
        output = longer.with_x(self.run_block(block, longer))
        return output.remove(prompts.shape[1]).x

    # The places inside a block where methods add something

    @abstractmethod
    def add_beside(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """Let `module` read what the attention or the MLP of a block reads, and add its output to theirs."""

    @abstractmethod
    def add_behind(
        self,
        block: LibraryModule,
        branch: Branch,
        module: nn.Module,
    ) -> None:
        """Let what the attention or the MLP of a block adds to the tokens go through `module` first."""

    @abstractmethod
    def projections(self, block: LibraryModule) -> dict[str, Projection]:
        """Where the weights of the attention are: `q`, `k`, `v`, and `o`, the output."""

    # The parameters of the tower by their place

    @abstractmethod
    def output_projection(self) -> list[nn.Parameter]:
        """The linear map into the joint space; empty if the tower ends without one."""

    @abstractmethod
    def head(self) -> list[nn.Parameter]:
        """Everything behind the last block: norm, pooling and projection."""

    @abstractmethod
    def set_grad_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of a block in the backward pass instead of holding them, or not."""

    def prepare_for_training(self) -> None:
        """Once the CLIP is frozen: let its blocks compute the same with less work, where the family can."""
        return


class VisionTower(Tower):
    """A tower that reads frames.

    `has_halves`: a method may run the attention and the MLP of a block one by one, and change the tokens
    between them.
    """

    name = "vision"
    has_halves = False

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it takes pixels."""
        return next(self.clip.visual.parameters()).dtype

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens of a frame."""

    @property
    @abstractmethod
    def grad_checkpointing(self) -> bool:
        """Whether `clip.set_grad_checkpointing` has asked for it."""

    @abstractmethod
    def embed(self, frames: Tensor) -> Tensor:
        """frames Float [N, 3, H, W], normalised -> what enters the first block, [N, L, width]."""

    def tokens(
        self,
        x: Tensor,
        frames: int,
        real: Tensor | None,
    ) -> Tokens:
        """x [B * F, L, width] as `Tokens`, with the positions that blocks ask for; `real` Bool [B, F].

        The first token, of the class or of a whole frame, is the prefix, in most families.
        """
        return Tokens(
            x=x,
            tower=self,
            prefix=1,
            frames=frames,
            real=real,
        )

    @abstractmethod
    def pool(self, tokens: Tokens) -> Tensor:
        """What the last block hands on -> features [N, D], not normalised."""

    def add_before_attention(self, block: LibraryModule, module: nn.Module) -> None:
        """Let what the attention of a block reads go through `module` first; the residual does not."""
        raise NotImplementedError

    def attention(
        self,
        block: LibraryModule,
        tokens: Tokens,
        change: nn.Module | None,
    ) -> tuple[Tensor, Tensor]:
        """The first half of a block: x plus its attention, [N, L, D], of the `tokens.read` first ones if
        that is a number; and the keys [N, L, D / heads], the mean over the heads.

        A token that stands for n patches is seen as n tokens: log n is added to its logits. One of size 0 is
        seen by nobody. change: what is added to queries, keys and values, of the normed x [N, L, D] -> [N, L,
        3 D].
        """
        raise NotImplementedError

    def mlp(self, block: LibraryModule, x: Tensor) -> Tensor:
        """The second half of a block: x [N, L, D] plus its MLP."""
        raise NotImplementedError

    @abstractmethod
    def embedding(self) -> dict[str, nn.Parameter]:
        """The parameters before the first block, by name."""


class TextTower(Tower):
    """A tower that reads token ids."""

    name = "text"

    @property
    def text(self) -> LibraryModule:
        """What holds the embedding, the blocks and the projection."""
        return text_module(self.clip)

    @abstractmethod
    def encode(self, ids: Tensor) -> Tensor:
        """ids Int [N, L], L <= context length -> features [N, D], not normalised."""

    def longest(self, ids: Tensor) -> int:
        """How many of the L positions must be read: all, where what follows the text is seen."""
        return ids.shape[1]


class Towers(NamedTuple):
    """Both towers of one CLIP, and the longest text it reads (tokens, start and end included)."""

    vision: VisionTower
    text: TextTower
    context_length: int


def towers(clip: CLIP) -> Towers:
    """The vision and the text tower of an open_clip `CLIP`, `CustomTextCLIP` or `CoCa`.

    Raises ValueError, naming the model and the reason, for anything else. A tower without blocks raises it
    when its blocks are asked for.
    """
    return Towers(vision_tower(clip), text_tower(clip), clip.context_length)


def vision_tower(clip: CLIP) -> VisionTower:
    """The vision tower of a CLIP."""
    # the families import this file
    from vopcore.clip.open_clip_tower import OpenClipVision
    from vopcore.clip.timm_tower import TimmVision
    from vopcore.clip.whole_tower import WholeVision

    _check(clip)
    for family in (OpenClipVision, TimmVision):
        if family.builds(clip.visual):
            return family(clip)
    return WholeVision(clip)


def text_tower(clip: CLIP) -> TextTower:
    """The text tower of a CLIP."""
    from vopcore.clip.huggingface_tower import HuggingFaceText
    from vopcore.clip.open_clip_tower import OpenClipText
    from vopcore.clip.whole_tower import WholeText

    _check(clip)
    text = text_module(clip)
    for family in (OpenClipText, HuggingFaceText):
        if family.builds(text):
            return family(clip)
    return WholeText(clip)


def model_name(clip: CLIP) -> str:
    """What `load` was asked for; the class of a CLIP that open_clip itself has loaded."""
    return getattr(clip, "model_name", type(clip).__name__)


def text_module(clip: CLIP) -> LibraryModule:
    """What holds the text tower: the CLIP itself, or its `text` in a CustomTextCLIP."""
    return getattr(clip, "text", clip)


def feature_parameters(clip: CLIP) -> dict[str, nn.Parameter]:
    """The parameters of a CLIP that its features and their similarity depend on, by name: all but CoCa's
    caption decoder and the bias of a sigmoid loss.
    """
    parameters = {}
    for name, parameter in clip.named_parameters():
        if name != "logit_bias" and not name.startswith("text_decoder."):
            parameters[name] = parameter
    return parameters


def parameters_of(modules: Iterable[nn.Module | nn.Parameter | None]) -> list[nn.Parameter]:
    """All parameters of these modules, parameters and Nones, in order."""
    parameters: list[nn.Parameter] = []
    for module in modules:
        if isinstance(module, nn.Parameter):
            parameters.append(module)
        elif module is not None:
            parameters += module.parameters()
    return parameters


def _check(clip: CLIP) -> None:
    import open_clip

    known = (open_clip.CLIP, open_clip.CustomTextCLIP, open_clip.CoCa)
    if not isinstance(clip, known):
        name = type(clip).__name__
        raise ValueError(
            f"{model_name(clip)}: a {name} is not an open_clip CLIP; "
            "choose a model of open_clip, such as ViT-B-32-quickgelu"
        )
