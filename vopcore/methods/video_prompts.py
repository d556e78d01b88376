"""The parts of VoP's video prompts: by the frame's position, from the video's context, and joint attention.

VoP, https://arxiv.org/abs/2211.12764, 3.3. In the vision tower the frames of a video stand one after the
other: x is [B * F, L, D].
"""

import torch
from torch import Tensor, nn

from vopcore.clip import Prompts, Tower, VideoBlock, attend, lean, with_prompts


class FramePrompts(nn.Module):
    """Generic prompts, and prompts looked up by the frame's index in its video (VoP^P)."""

    def __init__(self, tower: Tower, generic: int, specific: int, frames: int) -> None:
        super().__init__()
        self.generic = Prompts(tower, generic)
        self.table = nn.Parameter(nn.init.normal_(tower.new(frames, specific, tower.width), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """x [B * F, L, D] -> prompts [B * F, generic + specific, D]"""
        table = self.table.repeat(len(x) // len(self.table), 1, 1)
        return torch.cat([self.generic(x), table], dim=1)


class ContextModel(nn.Module):
    """CLS tokens of a video's frames, in order -> specific prompts for each frame (VoP^C).

    A recurrent model reads the real frames only, from the first to the last; `bilstm` also from the last
    to the first. Then a linear layer makes `specific` tokens of each frame's state.
    """

    def __init__(self, tower: Tower, kind: str, specific: int, frames: int) -> None:
        super().__init__()
        width, like = tower.width, tower.new(0)
        self.specific, options = specific, {"dtype": like.dtype, "device": like.device}
        self.kind = kind
        directions = {"bilstm": 2, "lstm": 1, "transformer": 0}[kind]
        self.readers = nn.ModuleList(
            nn.LSTM(width, width, batch_first=True, **options) for _ in range(directions)
        )
        if kind == "transformer":
            self.positions = nn.Parameter(nn.init.normal_(tower.new(frames, width), std=0.02))
            layer = nn.TransformerEncoderLayer(
                width, _heads(width), 4 * width, 0.0, "gelu", batch_first=True, norm_first=True, **options
            )
            self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.project = nn.Linear(max(1, directions) * width, specific * width, **options)

    def forward(self, cls: Tensor, mask: Tensor | None) -> Tensor:
        """cls [B, F, D], mask Bool [B, F] or None -> prompts [B, F, specific, D]"""
        if self.kind == "transformer":
            state = self.encoder(cls + self.positions, src_key_padding_mask=None if mask is None else ~mask)
        else:
            state = self._read(cls, mask)
        return self.project(state).unflatten(-1, (self.specific, -1))

    def _read(self, cls: Tensor, mask: Tensor | None) -> Tensor:
        orders = [forward_order, backward_order][: len(self.readers)]
        states = []
        for reader, order in zip(self.readers, orders, strict=True):
            there = order(cls, mask)
            back = there.argsort(dim=1)
            states.append(take(reader(take(cls, there))[0], back))
        return torch.cat(states, dim=-1)


def forward_order(cls: Tensor, mask: Tensor | None) -> Tensor:
    """Indices [B, F]: real frames first, in time order, then the padding."""
    if mask is None:
        return torch.arange(cls.shape[1], device=cls.device).expand(cls.shape[:2])
    return (~mask).byte().argsort(dim=1, stable=True)


def backward_order(cls: Tensor, mask: Tensor | None) -> Tensor:
    """Indices [B, F]: real frames first, from the last to the first, then the padding."""
    num_frames = cls.shape[1]
    if mask is None:
        return forward_order(cls, None).flip(1)
    step = torch.arange(num_frames, device=cls.device)
    reverse = (mask.sum(dim=1, keepdim=True) - 1 - step) % num_frames
    return forward_order(cls, mask).gather(1, reverse)


def take(x: Tensor, order: Tensor) -> Tensor:
    """Rows of x [B, F, D] in the order [B, F]."""
    return x.gather(1, order.unsqueeze(-1).expand_as(x) if x.shape[-1] else order.unsqueeze(-1))


def _heads(width: int) -> int:
    """CLIP's heads have 64 channels; a narrower model of an odd width has one."""
    return width // 64 if width % 64 == 0 else 1


class ContextPrompted(VideoBlock):
    """A block with generic prompts, and prompts made from the CLS tokens that arrive at it."""

    def __init__(self, block: nn.Module, prompts: Prompts, model: ContextModel, frames: int) -> None:
        super().__init__(block)
        self.prompts, self.model, self.frames = prompts, model, frames

    def forward(
        self, x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """x [B * F, L, D], `attn_mask` the mask of real frames -> the same shape"""
        num_frames = self.frames if attn_mask is None else attn_mask.shape[1]
        cls = x[:, 0].unflatten(0, (-1, num_frames))
        specific = self.model(cls, attn_mask).flatten(0, 1)
        generic = self.prompts(x).to(specific.dtype)
        return with_prompts(self.block, x, torch.cat([generic, specific], dim=1))


class FramePositions(nn.Module):
    """A position per frame, zero at the start, added to all tokens of the frame."""

    def __init__(self, tower: Tower, frames: int) -> None:
        super().__init__()
        self.table = nn.Parameter(nn.init.zeros_(tower.new(frames, tower.width)))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, F, L, D] -> the same shape"""
        return x + self.table.unsqueeze(1).to(x.dtype)


class KeyMasked(nn.Module):
    """A self-attention whose `attn_mask` [B, L] is one of keys: not written out per head and query."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What nn.MultiheadAttention takes and gives; the mask is additive."""
        return self.attn(query, key, value, need_weights=need_weights, key_padding_mask=attn_mask)


class Joint(VideoBlock):
    """A block that reads a video as one sequence (VoP^F): `[CLS tokens, patches of each frame]`, and
    prompts beside it.

    Padding frames are seen by nobody.
    """

    def __init__(
        self, block: nn.Module, prompts: Prompts, frames: int, positions: FramePositions | None
    ) -> None:
        super().__init__(block)
        block.attn = KeyMasked(block.attn)
        if block.read is not None:
            lean(block, read=frames)
        self.prompts, self.frames, self.positions = prompts, frames, positions

    def forward(
        self, x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """x [B * F, L, D], `attn_mask` the mask of real frames -> the same shape"""
        x = x.unflatten(0, (-1, self.frames))
        if self.positions is not None:
            x = self.positions(x)
        cls, patches = x[:, :, 0], x[:, :, 1:]
        prompts = self.prompts(x).to(x.dtype)
        hidden = None if attn_mask is None else self._hidden(attn_mask, prompts, patches)
        sequence = attend(self.block, torch.cat([cls, patches.flatten(1, 2)], dim=1), prompts, hidden)
        tokens = sequence.shape[1] // self.frames  # of a frame: its CLS, and its patches if they are read
        cls, patches = sequence[:, : self.frames], sequence[:, self.frames :]
        patches = patches.unflatten(1, (self.frames, tokens - 1))
        return torch.cat([cls.unsqueeze(2), patches], dim=2).flatten(0, 1)

    @staticmethod
    def _hidden(mask: Tensor, prompts: Tensor, patches: Tensor) -> Tensor:
        """The additive mask [B, P + F + F * M] of keys: -inf at the tokens of padding frames."""
        shown = mask.new_ones(prompts.shape[:2])
        real = torch.cat([shown, mask, mask.repeat_interleave(patches.shape[2], dim=1)], dim=1)
        return torch.zeros(real.shape, dtype=patches.dtype, device=mask.device).masked_fill(
            ~real, float("-inf")
        )
