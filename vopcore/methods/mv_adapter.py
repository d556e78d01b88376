"""MV-Adapter: bottlenecks behind the MLPs, in which frames see each other and words see those before them.

https://arxiv.org/abs/2301.07868 (3.2 temporal adaptation, 3.3 cross-modality tying). Of the release's
options those of its MSR-VTT config. The release also trains CLIP's biases at 1e-7; here CLIP is frozen.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vopcore.clip import CLIP, Block, Tokens, Tower, towers, wrap
from vopcore.methods.base import check_needs, require

WIDTH = 64  # of the bottleneck
HEADS = 2
SCALE = 0.1  # of what an adapter adds
SHARED = 32  # of the factor that both towers share
CALIBRATION = 16  # hidden channels of the calibration


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)"""
    return x * torch.sigmoid(1.702 * x)


def new_linear(tower: Tower, width: int, out: int, bias: bool = True) -> nn.Linear:
    """A linear layer of the tower's dtype and device."""
    like = tower.new(0)
    return nn.Linear(width, out, bias=bias, dtype=like.dtype, device=like.device)


def new_norm(tower: Tower) -> nn.LayerNorm:
    """A norm of the bottleneck's width."""
    like = tower.new(0)
    return nn.LayerNorm(WIDTH, dtype=like.dtype, device=like.device)


class SmallBlock(nn.Module):
    """A transformer block of the bottleneck's width, norms first."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.norm_1 = new_norm(tower)
        self.qkv = new_linear(tower, WIDTH, 3 * WIDTH)
        self.out = new_linear(tower, WIDTH, WIDTH)
        self.norm_2 = new_norm(tower)
        self.into = new_linear(tower, WIDTH, 4 * WIDTH)
        self.back = new_linear(tower, 4 * WIDTH, WIDTH)

        # The release draws them by the width of the tower.
        nn.init.normal_(self.qkv.weight, std=tower.width**-0.5)
        for linear in (self.out, self.into, self.back):
            nn.init.normal_(linear.weight, std=(2 * tower.width) ** -0.5)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """x [N, L, 64]; seen Bool, broadcast to [N, heads, L, L]; None: all -> [N, L, 64]"""
        heads = []
        for rows in self.qkv(self.norm_1(x)).chunk(3, dim=-1):
            heads.append(rows.unflatten(-1, (HEADS, -1)).transpose(1, 2))
        queries, keys, values = heads
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.back(quick_gelu(self.into(self.norm_2(x))))


class Tying(nn.Module):
    """Factors of the rows of a down projection, a linear map of what both towers share."""

    def __init__(self, tower: Tower, shared: nn.Parameter) -> None:
        super().__init__()
        self.shared = shared
        self.to_factors = new_linear(tower, SHARED, WIDTH)

    def forward(self, weight: Tensor) -> Tensor:
        """weight [64, D] -> the same shape"""
        return self.to_factors(self.shared).unsqueeze(1) * weight


class Adapter(nn.Module):
    """What both towers' adapters have: a way down and a way up, which is zero at the start."""

    def __init__(self, tower: Tower, shared: nn.Parameter | None) -> None:
        super().__init__()
        self.tokens: Tokens | None = None  # those of the last call, without their values
        self.tying = None if shared is None else Tying(tower, shared)
        self.down = new_linear(tower, tower.width, WIDTH)
        self.up = new_linear(tower, WIDTH, tower.width)
        self.norm = new_norm(tower)
        self.block = SmallBlock(tower)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        """y [N, L, D], the output of an MLP -> [N, L, D]"""
        weight = self.down.weight if self.tying is None else self.tying(self.down.weight)
        hidden = F.linear(y, weight, self.down.bias)
        assert self.tokens is not None, "the block around this adapter has said what goes through"
        added = self.up(self.adapt(hidden, self.tokens))
        return y + SCALE * added.to(y.dtype)

    def adapt(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """hidden [N, L, 64], of `tokens` -> [N, L, 64]"""
        raise NotImplementedError


class VisionAdapter(Adapter):
    """Class tokens and mean patches of a video's frames, and a token of its own, see each other; the class
    tokens are then calibrated by a factor per channel.
    """

    def __init__(self, tower: Tower, shared: nn.Parameter | None, frames: int) -> None:
        super().__init__(tower, shared)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        self.token = nn.Parameter(nn.init.normal_(tower.new(WIDTH), std=WIDTH**-0.5))
        self.positions = nn.Parameter(nn.init.normal_(tower.new(2 * frames + 1, WIDTH), std=0.01))
        self.of_video = new_linear(tower, WIDTH, WIDTH)
        self.squeeze = new_linear(tower, 2 * WIDTH, CALIBRATION)
        self.excite = new_linear(tower, CALIBRATION, WIDTH, bias=False)
        nn.init.zeros_(self.excite.weight)

    def adapt(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Patches are not changed by other frames."""
        hidden = quick_gelu(hidden)
        classes = hidden[:, 0].unflatten(0, (-1, tokens.frames))
        patches = hidden[:, tokens.prefix :].mean(dim=1).unflatten(0, (-1, tokens.frames))

        token = self.token.to(classes.dtype).expand(len(classes), 1, -1)
        sequence = torch.cat([token, classes, patches], dim=1) + self.positions.to(classes.dtype)
        seen = None
        if tokens.real is not None:
            real_token = tokens.real.new_ones(len(tokens.real), 1)
            seen = torch.cat([real_token, tokens.real, tokens.real], dim=1)[:, None, None]
        sequence = quick_gelu(self.block(self.norm(sequence), seen))
        token, classes, patches = sequence.split([1, tokens.frames, tokens.frames], dim=1)

        video = self.of_video(token).expand(-1, tokens.frames, -1)
        summary = torch.cat([classes + patches, video], dim=-1)
        factors = 1 + self.excite(F.relu(self.squeeze(summary)))
        classes = (factors * classes).flatten(0, 1).unsqueeze(1)
        return torch.cat([classes.to(hidden.dtype), hidden[:, 1:]], dim=1)


class TextAdapter(Adapter):
    """Each word sees those before it; all words, in a tower that is not causal. Words behind the last
    position share it.
    """

    def __init__(self, tower: Tower, shared: nn.Parameter | None, words: int) -> None:
        super().__init__(tower, shared)
        nn.init.normal_(self.down.weight, std=(2 * tower.width) ** -0.5)
        self.positions = nn.Parameter(nn.init.normal_(tower.new(words, WIDTH), std=0.01))

    def adapt(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Padding is seen by nobody."""
        length = hidden.shape[1]
        places = torch.arange(length, device=hidden.device).clamp(max=len(self.positions) - 1)
        sequence = self.norm(hidden + self.positions[places].to(hidden.dtype))
        seen = torch.ones(1, length, length, dtype=torch.bool, device=hidden.device)
        if tokens.causal:
            seen = seen.tril()
        if tokens.hidden is not None:
            # A token sees itself in any case: a row of nothing would be no number.
            itself = torch.eye(length, dtype=torch.bool, device=hidden.device)
            seen = seen & ~tokens.hidden.unsqueeze(1) | itself
        return quick_gelu(self.block(sequence, seen.unsqueeze(1)))


class Adapted(Block):
    """A block that tells its adapter which tokens go through."""

    def __init__(self, block: nn.Module, adapter: Adapter, across_frames: bool) -> None:
        super().__init__(block)
        self.across_frames = across_frames
        self._adapter = (adapter,)  # in a tuple: it stands inside the block already

    def forward(self, tokens: Tokens) -> Tokens:
        """The adapter reads patches, so the last block computes all of its tokens."""
        tokens = replace(tokens, read=None)
        # It stays behind the block: layers of transformers recompute themselves in the backward pass.
        self._adapter[0].tokens = tokens.with_x(tokens.x.new_empty(0))
        return tokens.run(self.block)


@dataclass(frozen=True, kw_only=True)
class MVAdapter:
    """Adapters behind each MLP of both towers, inside the residual branch (MV-Adapter 3.2, 3.3).

    words: positions of a text; those of a longer text share the last one. tied_layers: how many of the last
    layers, counted from each tower's end, scale their down projections by factors from a shared vector.
    """

    words: int = 32
    tied_layers: int = 2

    fixed_frames: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("reads_class_token",)

    def __post_init__(self) -> None:
        require("words", self.words, self.words >= 1, "at least 1")
        require("tied_layers", self.tied_layers, self.tied_layers >= 0, "at least 0")

    def attach(self, clip: CLIP, frames: int) -> None:
        """Put an adapter behind each MLP."""
        vision, text, _ = towers(clip)
        check_needs("mv_adapter", self, vision)
        depth = min(vision.layers, text.layers)
        limit = f"at most {depth}, the layers of the shallower tower"
        require("tied_layers", self.tied_layers, self.tied_layers <= depth, limit)

        shared = [nn.Parameter(nn.init.zeros_(vision.new(SHARED))) for _ in range(self.tied_layers)]
        for tower in (vision, text):
            free = [None] * (tower.layers - self.tied_layers)
            adapters: list[Adapter] = []
            for block, vector in zip(tower.blocks, [*free, *shared], strict=True):
                adapter: Adapter
                if tower is vision:
                    adapter = VisionAdapter(tower, vector, frames)
                else:
                    adapter = TextAdapter(tower, vector, self.words)
                tower.add_behind(block, "mlp", adapter)
                adapters.append(adapter)
            put_around(tower, adapters)


def put_around(tower: Tower, adapters: list[Adapter]) -> None:
    """An `Adapted` around each block."""
    across_frames = tower.name == "vision"
    wrap(tower, lambda i, block: Adapted(block, adapters[i], across_frames))
