"""The parts of VoP's video prompts: by the frame's position, from the video's context, and joint attention.

VoP, https://arxiv.org/abs/2211.12764, 3.3. In the vision tower the frames of a video stand one after the
other: x is [B * F, L, D].
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vopcore.clip import Block, Prompts, Tokens, Tower, with_prompts

DIRECTIONS = {
    "bilstm": 2,
    "lstm": 1,
    "transformer": 0,
}  # in which a kind of context model reads


class FramePrompts(nn.Module):
    """Generic prompts, and prompts looked up by the frame's index in its video (VoP^P)."""

    def __init__(
        self,
        tower: Tower,
        generic: int,
        specific: int,
        frames: int,
    ) -> None:
        super().__init__()
        self.generic = Prompts(tower, generic)
        table = tower.new(frames, specific, tower.width)
        self.table = nn.Parameter(nn.init.normal_(table, std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """x [B * F, L, D] -> prompts [B * F, generic + specific, D]"""
        num_videos = len(x) // len(self.table)
        specific = self.table.repeat(num_videos, 1, 1)
        return torch.cat([self.generic(x), specific], dim=1)


class ContextModel(nn.Module):
    """CLS tokens of a video's frames, in order -> specific prompts for each frame (VoP^C).

    A recurrent model reads the real frames only, from the first to the last; `bilstm` also from the last
    to the first. Then a linear layer makes `specific` tokens of each frame's state.
    """

    def __init__(
        self,
        tower: Tower,
        kind: str,
        specific: int,
        frames: int,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.specific = specific
        width = tower.width
        like = tower.new(0)
        options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}

        directions = DIRECTIONS[kind]
        self.readers = nn.ModuleList()
        for _ in range(directions):
            self.readers.append(nn.LSTM(width, width, batch_first=True, **options))

        if kind == "transformer":
            positions = tower.new(frames, width)
            self.positions = nn.Parameter(nn.init.normal_(positions, std=0.02))
            layer = nn.TransformerEncoderLayer(
                d_model=width,
                nhead=_heads(width),
                dim_feedforward=4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
                **options,
            )
            self.encoder = nn.TransformerEncoder(
                layer,
                num_layers=4,
                enable_nested_tensor=False,
            )

        state_width = max(1, directions) * width
        self.project = nn.Linear(state_width, specific * width, **options)

    def forward(self, cls: Tensor, mask: Tensor | None) -> Tensor:
        """cls [B, F, D], mask Bool [B, F] or None -> prompts [B, F, specific, D]"""
        if self.kind == "transformer":
            padding = None if mask is None else ~mask
            state = self.encoder(cls + self.positions, src_key_padding_mask=padding)
        else:
            state = self._read(cls, mask)
        return self.project(state).unflatten(-1, (self.specific, -1))

    def _read(self, cls: Tensor, mask: Tensor | None) -> Tensor:
        orders = [forward_order(cls, mask)]
        if len(self.readers) == 2:
            orders.append(backward_order(cls, mask))

        states = []
        for reader, order in zip(self.readers, orders, strict=True):
            ordered = take(cls, order)
            # Autocast on CUDA knows fp16 alone for recurrent layers, whatever its own dtype: fp32 instead.
            # Tensors without values, whose products are only counted, know no autocast.
            exact = nullcontext() if cls.is_meta else torch.autocast(cls.device.type, enabled=False)
            with exact:
                dtype = next(reader.parameters()).dtype
                state, _ = reader(ordered.to(dtype))

            time_order = order.argsort(dim=1)
            states.append(take(state, time_order))
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
    last = mask.sum(dim=1, keepdim=True) - 1
    reverse = (last - step) % num_frames
    return forward_order(cls, mask).gather(1, reverse)


def take(x: Tensor, order: Tensor) -> Tensor:
    """Rows of x [B, F, D] in the order [B, F]."""
    rows = order.unsqueeze(-1)
    if x.shape[-1]:
        rows = rows.expand_as(x)
    return x.gather(1, rows)


def _heads(width: int) -> int:
    """CLIP's heads have 64 channels; a narrower model of an odd width has one."""
    return width // 64 if width % 64 == 0 else 1


class ContextPrompted(Block):
    """A block with generic prompts, and prompts made from the summaries of the frames that arrive at it."""

    across_frames = True

    def __init__(
        self,
        block: nn.Module,
        prompts: Prompts,
        model: ContextModel,
    ) -> None:
        super().__init__(block)
        self.prompts = prompts
        self.model = model

    def forward(self, tokens: Tokens) -> Tokens:
        """Frames of a video share nothing but what the model makes of their summaries."""
        specific = self.model(tokens.frame_summaries(), tokens.real).flatten(0, 1)
        generic = self.prompts(tokens.x).to(specific.dtype)
        return with_prompts(self.block, tokens, torch.cat([generic, specific], dim=1))


class FramePositions(nn.Module):
    """A position per frame, zero at the start, added to all tokens of the frame."""

    def __init__(self, tower: Tower, frames: int) -> None:
        super().__init__()
        self.table = nn.Parameter(nn.init.zeros_(tower.new(frames, tower.width)))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, F, L, D] -> the same shape"""
        return x + self.table.unsqueeze(1).to(x.dtype)


class Joint(Block):
    """A block that reads a video as one sequence (VoP^F): `[class tokens, prompts, patches of each frame]`.

    Padding frames are seen by nobody. Rotary positions say where in its frame a patch is, so they repeat for
    each frame.
    """

    across_frames = True

    def __init__(
        self,
        block: nn.Module,
        prompts: Prompts,
        positions: FramePositions | None,
    ) -> None:
        super().__init__(block)
        self.prompts = prompts
        self.positions = positions

    def forward(self, tokens: Tokens) -> Tokens:
        """Frames go in and come out one after the other, as for any block."""
        frames = tokens.frames
        x = tokens.x.unflatten(0, (-1, frames))
        if self.positions is not None:
            x = self.positions(x)
        prefix = x[:, :, : tokens.prefix]
        patches = x[:, :, tokens.prefix :]

        # One sequence of a video: all prefixes, then all patches.
        joint = torch.cat([prefix.flatten(1, 2), patches.flatten(1, 2)], dim=1)

        hidden = None
        if tokens.real is not None:
            hidden = _padding(tokens.real, prefix.shape[2], patches.shape[2])
        rope = None
        if tokens.rope is not None:
            rope = tokens.rope.repeat(frames, 1)
        read = None
        if tokens.read is not None:
            read = tokens.read * frames

        video = replace(
            tokens,
            x=joint,
            prefix=tokens.prefix * frames,
            frames=1,
            hidden=hidden,
            rope=rope,
            read=read,
        )
        video = with_prompts(self.block, video, self.prompts(x))

        # Of the last block nothing but the class tokens may have come out.
        prefix = video.x[:, : video.prefix].unflatten(1, (frames, -1))
        patches = video.x[:, video.prefix :].unflatten(1, (frames, -1))
        return tokens.with_x(torch.cat([prefix, patches], dim=2).flatten(0, 1))


def _padding(
    real: Tensor,
    prefix: int,
    patches: int,
) -> Tensor:
    """real Bool [B, F] -> Bool [B, F * (prefix + patches)]: the tokens of padding frames in a joint
    sequence.
    """
    of_prefixes = real.repeat_interleave(prefix, dim=1)
    of_patches = real.repeat_interleave(patches, dim=1)
    return ~torch.cat([of_prefixes, of_patches], dim=1)
