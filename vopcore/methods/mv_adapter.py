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


def new_linear(
    tower: Tower,
    width: int,
    out: int,
    bias: bool = True,
) -> nn.Linear:
    """A linear layer of the tower's dtype and device."""
    like = tower.new(0)
    return nn.Linear(
        width,
        out,
        bias=bias,
        dtype=like.dtype,
        device=like.device,
    )


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
        projected = self.qkv(self.norm_1(x))
        for rows in projected.chunk(3, dim=-1):
            by_head = rows.unflatten(-1, (HEADS, -1))
            heads.append(by_head.transpose(1, 2))

        queries, keys, values = heads
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=seen,
        )
        attended = attended.transpose(1, 2).flatten(2)
        x = x + self.out(attended)

        hidden = self.into(self.norm_2(x))
        return x + self.back(quick_gelu(hidden))


class Tying(nn.Module):
    """Factors of the rows of a down projection, a linear map of what both towers share."""

    def __init__(self, tower: Tower, shared: nn.Parameter) -> None:
        super().__init__()
        self.shared = shared
        self.to_factors = new_linear(tower, SHARED, WIDTH)

    def forward(self, weight: Tensor) -> Tensor:
        """weight [64, D] -> the same shape"""
        factors = self.to_factors(self.shared)
        return factors.unsqueeze(1) * weight


class Adapter(nn.Module):
    """What both towers' adapters have: a way down and a way up, which is zero at the start."""

    def __init__(self, tower: Tower, shared: nn.Parameter | None) -> None:
        super().__init__()
        # those of the last call, without their values
        self.tokens: Tokens | None = None
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
        assert self.tokens is not None, "the block around this adapter has said what goes through"
        weight = self.down.weight
        if self.tying is not None:
            weight = self.tying(weight)

        hidden = F.linear(y, weight, self.down.bias)
        adapted = self.adapt(hidden, self.tokens)
        added = self.up(adapted)
        return y + SCALE * added.to(y.dtype)

    def adapt(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """hidden [N, L, 64], of `tokens` -> [N, L, 64]"""
        raise NotImplementedError


class VisionAdapter(Adapter):
    """Class tokens and mean patches of a video's frames, and a token of its own, see each other; the class
    tokens are then calibrated by a factor per channel.
    """

    def __init__(
        self,
        tower: Tower,
        shared: nn.Parameter | None,
        frames: int,
    ) -> None:
        super().__init__(tower, shared)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)

        token = tower.new(WIDTH)
        self.token = nn.Parameter(nn.init.normal_(token, std=WIDTH**-0.5))

        # Of the video's own token, and of the class token and the mean patch of each frame.
        positions = tower.new(2 * frames + 1, WIDTH)
        self.positions = nn.Parameter(nn.init.normal_(positions, std=0.01))
        self.of_video = new_linear(tower, WIDTH, WIDTH)
        self.squeeze = new_linear(tower, 2 * WIDTH, CALIBRATION)
        self.excite = new_linear(tower, CALIBRATION, WIDTH, bias=False)
        nn.init.zeros_(self.excite.weight)

    def adapt(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Patches are not changed by other frames."""
        hidden = quick_gelu(hidden)
        num_frames = tokens.frames
        classes = hidden[:, 0].unflatten(0, (-1, num_frames))
        mean_patches = hidden[:, tokens.prefix :].mean(dim=1)
        patches = mean_patches.unflatten(0, (-1, num_frames))

        # One short sequence per video, in which its frames see each other.
        token = self.token.to(classes.dtype).expand(len(classes), 1, -1)
        sequence = torch.cat([token, classes, patches], dim=1)
        sequence = sequence + self.positions.to(classes.dtype)
        seen = self._seen(tokens)
        sequence = quick_gelu(self.block(self.norm(sequence), seen))
        token, classes, patches = sequence.split([1, num_frames, num_frames], dim=1)

        # A factor per channel, from what the frame and the video show.
        video = self.of_video(token).expand(-1, num_frames, -1)
        summary = torch.cat([classes + patches, video], dim=-1)
        squeezed = F.relu(self.squeeze(summary))
        factors = 1 + self.excite(squeezed)
        calibrated = (factors * classes).flatten(0, 1)

        # Class tokens stand first in each sequence; the rest is as it was.
        class_tokens = calibrated.unsqueeze(1).to(hidden.dtype)
        return torch.cat([class_tokens, hidden[:, 1:]], dim=1)

    @staticmethod
    def _seen(tokens: Tokens) -> Tensor | None:
        """Bool [B, 1, 1, 2 F + 1]: the video's own token, and what of each frame is no padding."""
        if tokens.real is None:
            return None
        own_token = tokens.real.new_ones(len(tokens.real), 1)
        seen = torch.cat([own_token, tokens.real, tokens.real], dim=1)
        return seen[:, None, None]


class TextAdapter(Adapter):
    """Each word sees those before it; all words, in a tower that is not causal. Words behind the last
    position share it.
    """

    def __init__(
        self,
        tower: Tower,
        shared: nn.Parameter | None,
        words: int,
    ) -> None:
        super().__init__(tower, shared)
        nn.init.normal_(self.down.weight, std=(2 * tower.width) ** -0.5)
        positions = tower.new(words, WIDTH)
        self.positions = nn.Parameter(nn.init.normal_(positions, std=0.01))

    def adapt(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Padding is seen by nobody."""
        length = hidden.shape[1]
        device = hidden.device

        # Words behind the last position share it.
        last = len(self.positions) - 1
        places = torch.arange(length, device=device).clamp(max=last)
        positions = self.positions[places].to(hidden.dtype)
        sequence = self.norm(hidden + positions)

        seen = torch.ones(
            1,
            length,
            length,
            dtype=torch.bool,
            device=device,
        )
        if tokens.causal:
            seen = seen.tril()
        if tokens.hidden is not None:
            # A token sees itself in any case: a row of nothing would be no number.
            itself = torch.eye(length, dtype=torch.bool, device=device)
            is_word = ~tokens.hidden.unsqueeze(1)
            seen = seen & is_word | itself
        return quick_gelu(self.block(sequence, seen.unsqueeze(1)))


class Adapted(Block):
    """A block that tells its adapter which tokens go through."""

    def __init__(
        self,
        block: nn.Module,
        adapter: Adapter,
        across_frames: bool,
    ) -> None:
        super().__init__(block)
        self.across_frames = across_frames
        self._adapter = (adapter,)  # in a tuple: it stands inside the block already

    def forward(self, tokens: Tokens) -> Tokens:
        """The adapter reads patches, so the last block computes all of its tokens."""
        tokens = replace(tokens, read=None)

        # It stays behind the block: layers of transformers recompute themselves in the backward pass.
        without_values = tokens.x.new_empty(0)
        self._adapter[0].tokens = tokens.with_x(without_values)
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

        shared = []
        for _ in range(self.tied_layers):
            zeros = nn.init.zeros_(vision.new(SHARED))
            shared.append(nn.Parameter(zeros))

        for tower in (vision, text):
            # The last layers of each tower are tied; those before have adapters of their own.
            num_free = tower.layers - self.tied_layers
            vectors = [*[None] * num_free, *shared]
            adapters: list[Adapter] = []
            for block, vector in zip(tower.blocks, vectors, strict=True):
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
