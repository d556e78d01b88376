"""DGL: prompts of both towers from one table, and global prompts that gather what all frames show.

https://arxiv.org/abs/2401.10588 (3.2 the dynamic local prompts, 3.3 the global-local attention). The release
also has prompts behind each text; under the causal mask nothing that is read ever sees them, so they are
left out here: 393,728 of its 827,392 parameters with `space: linear` on ViT-B/32.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vopcore.clip import CLIP, Block, Tokens, Tower, towers, with_prompts, wrap
from vopcore.clip.towers import VisionTower
from vopcore.methods.base import check_needs, fits_context, require


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)"""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


class LinearSpace(nn.Module):
    """Local prompts of a layer, the same for all frames, and text prompts that are a linear map of them."""

    def __init__(
        self,
        vision: Tower,
        text: Tower,
        prompts: int,
        frames: int,
        bound: float,
    ) -> None:
        super().__init__()
        layers = max(vision.layers, text.layers)
        table = vision.new(prompts, layers, vision.width)
        self.table = nn.Parameter(table.uniform_(-bound, bound))

        like = vision.new(0)
        self.to_text = nn.Linear(
            vision.width,
            text.width,
            dtype=like.dtype,
            device=like.device,
        )

    def text(self, layer: int) -> Tensor:
        """-> prompts [1, p, D of the text tower]"""
        local_prompts = self.table[:, layer]
        return self.to_text(local_prompts).unsqueeze(0)

    def frames(self, layer: int) -> Tensor:
        """-> prompts [1, p, D], of all frames"""
        return self.table[:, layer].unsqueeze(0)


class TransformerSpace(nn.Module):
    """A table of prompts of texts and of each frame in each layer, that go through one block of their own.

    The release's second half of the text's rows makes prompts that nothing reads; as rows that the others
    attend to they stay.
    """

    def __init__(
        self,
        vision: Tower,
        text: Tower,
        prompts: int,
        frames: int,
        bound: float,
    ) -> None:
        super().__init__()
        layers = max(vision.layers, text.layers)
        width = vision.width
        like = vision.new(0)
        options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        heads = width // 64 if width % 64 == 0 else 1

        self.prompts = prompts
        self.num_frames = frames
        table = vision.new((2 + frames) * prompts, layers, width)
        self.table = nn.Parameter(nn.init.normal_(table))
        self.norm_1 = nn.LayerNorm(width, **options)
        self.attention = nn.MultiheadAttention(
            width,
            heads,
            batch_first=True,
            **options,
        )
        self.norm_2 = nn.LayerNorm(width, **options)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, **options),
            QuickGELU(),
            nn.Linear(4 * width, width, **options),
        )
        self.to_text = nn.Sequential(
            nn.Linear(width, 2 * width, **options),
            QuickGELU(),
            nn.Linear(2 * width, text.width, **options),
        )

    def text(self, layer: int) -> Tensor:
        """-> prompts [1, p, D of the text tower]"""
        of_text = self._encoded(layer)[:, : self.prompts]
        return self.to_text(of_text)

    def frames(self, layer: int) -> Tensor:
        """-> prompts [F, p, D], of each frame"""
        of_frames = self._encoded(layer)[0, 2 * self.prompts :]
        return of_frames.unflatten(0, (self.num_frames, -1))

    def _encoded(self, layer: int) -> Tensor:
        x = self.table[:, layer].unsqueeze(0)
        normed = self.norm_1(x)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        x = x + attended
        return x + self.mlp(self.norm_2(x))


Space = LinearSpace | TransformerSpace


class TextPrompted(Block):
    """A text block that reads the prompts which a space holds for it."""

    def __init__(
        self,
        block: nn.Module,
        space: Space,
        layer: int,
    ) -> None:
        super().__init__(block)
        self.space = space
        self.layer = layer

    def forward(self, tokens: Tokens) -> Tokens:
        """The prompts are gone behind the block."""
        num_texts = len(tokens.x)
        prompts = self.space.text(self.layer).expand(num_texts, -1, -1)
        return with_prompts(self.block, tokens, prompts)


class GlobalPrompts(nn.Module):
    """Prompts of a whole video, that the first layer brings in."""

    def __init__(
        self,
        tower: Tower,
        count: int,
        bound: float,
    ) -> None:
        super().__init__()
        tokens = tower.new(count, tower.width)
        self.tokens = nn.Parameter(tokens.uniform_(-bound, bound))

    def forward(self, videos: int) -> Tensor:
        """-> prompts [B, count, D]"""
        return self.tokens.expand(videos, -1, -1)


class GlobalLocal(Block):
    """Frames that see themselves, their local prompts and the global ones; global prompts that see all.

    prompts: the global prompts, in the first layer; None in the others, which get them from the layer before.
    last: nothing but the first global prompt goes on.
    """

    across_frames = True

    def __init__(
        self,
        block: nn.Module,
        space: Space,
        layer: int,
        prompts: GlobalPrompts | None,
        last: bool,
    ) -> None:
        super().__init__(block)
        self.space = space
        self.layer = layer
        self.prompts = prompts
        self.last = last

    def forward(self, tokens: Tokens) -> Tokens:
        """Both reads have the global prompts as they enter the layer."""
        videos = len(tokens.x) // tokens.frames
        if self.prompts is not None:
            carried = self.prompts(videos).to(tokens.x.dtype)
        else:
            assert tokens.carried is not None, "the first layer has brought in the global prompts"
            carried = tokens.carried
        local = self._local_prompts(tokens, videos)

        # The global prompts see all that is in the video, but for padding.
        frames = torch.cat([local, tokens.x], dim=1)
        everything = frames.unflatten(0, (videos, -1))
        length = everything.shape[2]
        hidden = None
        if tokens.real is not None:
            hidden = ~tokens.real.repeat_interleave(length, dim=1)

        video = replace(
            tokens,
            x=carried,
            prefix=carried.shape[1],
            frames=1,
            rope=None,
            read=None,
        )
        seen = everything.flatten(1, 2)
        gathered = tokens.tower.attend(self.block, video, seen, hidden)
        if self.last:
            return replace(
                video,
                x=gathered[:, :1],
                prefix=1,
                carried=None,
            )

        # Each frame sees itself, its local prompts and the global ones.
        of_each_frame = carried.repeat_interleave(tokens.frames, dim=0)
        prompts = torch.cat([of_each_frame, local], dim=1)
        x = tokens.tower.attend(self.block, tokens, prompts)
        return replace(tokens, x=x, carried=gathered)

    def _local_prompts(self, tokens: Tokens, videos: int) -> Tensor:
        local = self.space.frames(self.layer).to(tokens.x.dtype)
        if len(local) == 1:
            return local.expand(len(tokens.x), -1, -1)
        return local.repeat(videos, 1, 1)


SPACES: dict[str, type[LinearSpace] | type[TransformerSpace]] = {
    "linear": LinearSpace,
    "transformer": TransformerSpace,
}


@dataclass(frozen=True, kw_only=True)
class DGL:
    """Prompts of both towers from a shared space, and global prompts of which the first is the video's
    feature, one for all of its frames (DGL 3.2, 3.3).

    space: `linear` (text prompts are a linear map of the local ones) or `transformer` (all prompts of a layer
    go through a block; knows one number of frames). prompts: before a text, and of a frame, in each layer.
    global_prompts: of a video.
    """

    space: Literal["linear", "transformer"] = "linear"
    prompts: int = 4
    global_prompts: int = 4

    needs = ("reads_class_token",)

    @property
    def fixed_frames(self) -> bool:
        """The transformer's table has rows for each frame."""
        return self.space == "transformer"

    def __post_init__(self) -> None:
        require("space", self.space, self.space in SPACES, f"one of {', '.join(SPACES)}")
        require("prompts", self.prompts, self.prompts >= 1, "at least 1")
        require(
            "global_prompts",
            self.global_prompts,
            self.global_prompts >= 1,
            "at least 1",
        )

    def attach(self, clip: CLIP, frames: int) -> None:
        """Wrap both towers around one space of prompts."""
        vision, text, context_length = towers(clip)
        check_needs("dgl", self, vision)
        fits_context("prompts", self.prompts, context_length)
        bound = initial_bound(vision)
        space = SPACES[self.space](
            vision,
            text,
            self.prompts,
            frames,
            bound,
        )
        wrap(text, lambda i, block: TextPrompted(block, space, i))

        last = vision.layers - 1

        def make(i: int, block: nn.Module) -> GlobalLocal:
            prompts = None
            if i == 0:
                prompts = GlobalPrompts(vision, self.global_prompts, bound)
            return GlobalLocal(
                block,
                space,
                i,
                prompts,
                last=i == last,
            )

        wrap(vision, make)


def initial_bound(vision: VisionTower) -> float:
    """Of the uniform start of prompts: Xavier's, of a patch and its token, as in VPT and the release."""
    height, width = vision.image_size
    num_patches = vision.length - 1
    pixels_of_a_patch = height * width / num_patches
    numbers_in = 3 * pixels_of_a_patch
    return (6 / (numbers_in + vision.width)) ** 0.5
