"""TempMe: low-rank updates in both towers, and vision tokens that are merged within and across frames.

Video temporal token merging: https://arxiv.org/abs/2409.01156. Merging is that of ToMe,
https://arxiv.org/abs/2210.09461 (3): every second patch is matched with the patch among the others that is
most alike, and the best matches become one token, a mean weighted by the patches that each token stands for.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vopcore.clip import CLIP, Block, Tokens, Tower, towers, wrap
from vopcore.clip.towers import VisionTower
from vopcore.methods.base import check_needs, read_as_changed, require

# layers in which neighbouring sequences are joined, just below the last layer
MAX_JOINS = 3


class FusedLowRank(nn.Module):
    """`B A` on queries, keys and values together: A [r, D], B [3 D, r], which is zero at the start."""

    def __init__(self, tower: Tower, rank: int) -> None:
        super().__init__()
        down = tower.new(rank, tower.width)
        up = tower.new(3 * tower.width, rank)
        self.a = nn.Parameter(nn.init.kaiming_uniform_(down, a=5**0.5))
        self.b = nn.Parameter(nn.init.zeros_(up))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, D] -> [N, L, 3 D]"""
        hidden = F.linear(x, self.a)
        return F.linear(hidden, self.b)


class UpdatedWeight(nn.Module):
    """A weight of the attention that reads as updated: its rows are `parts` of q, k, v, numbered from 0."""

    def __init__(self, low_rank: FusedLowRank, parts: list[int]) -> None:
        super().__init__()
        self.low_rank = low_rank
        self.parts = parts

    def forward(self, weight: Tensor) -> Tensor:
        """weight [len(parts) * D, D] -> the same shape"""
        thirds = self.low_rank.b.chunk(3)
        rows = torch.cat([thirds[part] for part in self.parts])
        return weight + rows @ self.low_rank.a


class GroupPositions(nn.Module):
    """A position for each sequence of a video, zero at the start."""

    def __init__(self, tower: Tower, groups: int) -> None:
        super().__init__()
        table = tower.new(groups, tower.width)
        self.table = nn.Parameter(nn.init.zeros_(table))

    def forward(self, x: Tensor) -> Tensor:
        """x [B * groups, L, D] -> the same shape"""
        num_groups = len(self.table)
        videos = x.unflatten(0, (-1, num_groups))
        positions = self.table.unsqueeze(1).to(x.dtype)
        return (videos + positions).flatten(0, 1)


class FrameMerging(Block):
    """A block that merges `count` patches of each frame between its attention and its MLP."""

    shortens = True

    def __init__(
        self,
        block: nn.Module,
        low_rank: FusedLowRank | None,
        count: int | None,
    ) -> None:
        super().__init__(block)
        self.low_rank = low_rank
        self.count = count

    def forward(self, tokens: Tokens) -> Tokens:
        """Each sequence comes out shorter by `count`, and in another order; as it is where that is None."""
        tokens, keys = attend(self.block, self.low_rank, tokens)
        if self.count is not None:
            tokens = merge(tokens, keys, self.count)
        x = vision_tower_of(tokens).mlp(self.block, tokens.x)
        return tokens.with_x(x)


class Joining(Block):
    """A block that makes one sequence of `group` neighbouring ones and merges patches across them.

    joined_share: of the tokens of a fresh sequence, merged before the attention. share: of those that are
    left, merged behind it.
    """

    across_frames = True

    def __init__(
        self,
        block: nn.Module,
        low_rank: FusedLowRank,
        positions: GroupPositions,
        group: int,
        joined_share: float,
        share: float,
    ) -> None:
        super().__init__(block)
        self.low_rank = low_rank
        self.positions = positions
        self.group = group
        self.joined_share = joined_share
        self.share = share

    def forward(self, tokens: Tokens) -> Tokens:
        """Sequences come out fewer, each with the class tokens of its frames in front."""
        tokens = replace(tokens, sizes=real_sizes(tokens))

        # Which patches are alike is asked of the tokens without the positions of their frames.
        without_gradient = tokens.with_x(tokens.x.detach())
        alike = join(without_gradient, self.group)
        positioned = tokens.with_x(self.positions(tokens.x))
        tokens = join(positioned, self.group)

        count = int(self.joined_share * tokens.x.shape[1])
        tokens = merge(tokens, alike.x, count)
        tokens, keys = attend(self.block, self.low_rank, tokens)

        count = int(self.share * tokens.x.shape[1])
        tokens = merge(tokens, keys, count)
        x = vision_tower_of(tokens).mlp(self.block, tokens.x)
        return tokens.with_x(x)


class ClassTokens(Block):
    """The last block: nothing but the class tokens of all frames is read of it, so nothing is merged."""

    across_frames = True

    def __init__(self, block: nn.Module, low_rank: FusedLowRank) -> None:
        super().__init__(block)
        self.low_rank = low_rank

    def forward(self, tokens: Tokens) -> Tokens:
        """-> sequences of one token, one for each frame."""
        # The prefix is the class tokens of all frames that were joined.
        num_frames = tokens.frames * tokens.prefix
        class_tokens = replace(tokens, read=tokens.prefix)
        tokens, _ = attend(self.block, self.low_rank, class_tokens)
        x = vision_tower_of(tokens).mlp(self.block, tokens.x)

        alone = x.flatten(0, 1).unsqueeze(1)
        return replace(
            tokens,
            x=alone,
            prefix=1,
            frames=num_frames,
            sizes=None,
        )


def vision_tower_of(tokens: Tokens) -> VisionTower:
    """The tower whose blocks these tokens go through: these methods change no other."""
    assert isinstance(tokens.tower, VisionTower)
    return tokens.tower


def attend(
    block: nn.Module,
    low_rank: FusedLowRank | None,
    tokens: Tokens,
) -> tuple[Tokens, Tensor]:
    """The tokens behind the attention of `block`, and its keys [N, L, C]."""
    x, keys = vision_tower_of(tokens).attention(block, tokens, low_rank)
    return tokens.with_x(x), keys


def real_sizes(tokens: Tokens) -> Tensor:
    """The sizes [N, L], 0 in padding frames: once frames are joined, nobody sees their tokens."""
    sizes = token_sizes(tokens)
    if tokens.real is None:
        return sizes

    # Frames that were joined before were marked then.
    if tokens.real.shape[1] != tokens.frames:
        return sizes
    is_real = tokens.real.flatten().unsqueeze(1)
    return sizes * is_real


def token_sizes(tokens: Tokens) -> Tensor:
    """How many tokens each one stands for, Float [N, L]; bf16 could not count them."""
    if tokens.sizes is not None:
        return tokens.sizes
    x = tokens.x
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.ones(
        x.shape[:2],
        dtype=dtype,
        device=x.device,
    )


def join(tokens: Tokens, group: int) -> Tokens:
    """One sequence of `group` neighbouring ones: all of their class tokens, then all of their patches."""

    def joined(values: Tensor) -> Tensor:
        prefix = tokens.prefix
        groups = values.unflatten(0, (-1, group))
        prefixes = groups[:, :, :prefix].flatten(1, 2)
        patches = groups[:, :, prefix:].flatten(1, 2)
        return torch.cat([prefixes, patches], dim=1)

    return replace(
        tokens,
        x=joined(tokens.x),
        sizes=joined(token_sizes(tokens)),
        prefix=tokens.prefix * group,
        frames=tokens.frames // group,
    )


def merge(
    tokens: Tokens,
    metric: Tensor,
    count: int,
) -> Tokens:
    """Merge `count` patches into others, at most half of all; metric [N, L, C] says which are alike.

    Out come `[prefix, patches at even places that are left, patches at odd places]`.
    """
    prefix = tokens.prefix
    x = tokens.x[:, prefix:]
    sizes = token_sizes(tokens)
    patch_sizes = sizes[:, prefix:]
    count = min(count, x.shape[1] // 2)

    # Places are counted in the whole sequence: patches at even ones go into patches at odd ones.
    sources = slice(prefix % 2, None, 2)
    targets = slice(1 - prefix % 2, None, 2)
    source_sizes = patch_sizes[:, sources]
    target_sizes = patch_sizes[:, targets]
    metric = metric[:, prefix:]
    merged, left, target = match(
        metric[:, sources],
        metric[:, targets],
        source_sizes == 0,
        target_sizes == 0,
        count,
    )

    # A target becomes the mean of all that it stands for then.
    source_x = x[:, sources]
    merged_sizes = source_sizes.gather(1, merged)
    weighted = rows(source_x, merged) * merged_sizes.unsqueeze(-1)
    target_x = x[:, targets] * target_sizes.unsqueeze(-1)
    target_rows = target.unsqueeze(-1).expand_as(weighted)
    target_x = target_x.scatter_add(1, target_rows, weighted)

    target_sizes = target_sizes.scatter_add(1, target, merged_sizes)
    divisors = target_sizes.clamp(min=1).unsqueeze(-1)
    target_x = (target_x / divisors).to(x.dtype)

    # What is not merged goes before the targets.
    left_x = rows(source_x, left)
    left_sizes = source_sizes.gather(1, left)
    prefix_x = tokens.x[:, :prefix]
    prefix_sizes = sizes[:, :prefix]
    return replace(
        tokens,
        x=torch.cat([prefix_x, left_x, target_x], dim=1),
        sizes=torch.cat([prefix_sizes, left_sizes, target_sizes], dim=1),
    )


def rows(x: Tensor, indices: Tensor) -> Tensor:
    """x [N, L, C], indices [N, K] -> [N, K, C]"""
    width = x.shape[-1]
    indices = indices.unsqueeze(-1).expand(-1, -1, width)
    return x.gather(1, indices)


@torch.no_grad()
def match(
    sources: Tensor,
    targets: Tensor,
    hidden_sources: Tensor,
    hidden_targets: Tensor,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which `count` of `sources` [N, S, C] go into which of `targets` [N, T, C]: those whose best match has
    the highest cosine.

    Hidden tokens (Bool [N, S] and [N, T]) stand for nothing. They go first, and nothing is matched with
    them, so what padding frames show decides nothing. -> indices of the merged sources [N, count] and of
    those left, in order, [N, S - count]; for each merged one its target [N, count].
    """
    unit_sources = F.normalize(sources, dim=-1)
    unit_targets = F.normalize(targets, dim=-1)
    cosines = unit_sources @ unit_targets.mT
    cosines = cosines.masked_fill(hidden_targets.unsqueeze(1), float("-inf"))
    likeness, best = cosines.max(dim=-1)
    likeness = likeness.masked_fill(hidden_sources, float("inf"))

    order = likeness.argsort(
        dim=1,
        descending=True,
        stable=True,
    )
    merged = order[:, :count]
    left = order[:, count:].sort(dim=1).values
    return merged, left, best.gather(1, merged)


def group_sizes(frames: int, joins: int) -> list[int]:
    """How many neighbours each of at most `joins` layers makes one, so that a video ends as one sequence:
    the prime factors of `frames`, as even as can be; 12 frames are 2, 2 and 3.
    """
    factors = []
    rest = frames
    divisor = 2
    while rest > 1:
        while rest % divisor == 0:
            factors.append(divisor)
            rest //= divisor
        divisor += 1

    groups = [1] * joins
    for factor in reversed(factors):
        smallest = groups.index(min(groups))
        groups[smallest] *= factor
    return sorted(group for group in groups if group > 1)


@dataclass(frozen=True, kw_only=True)
class TempMe:
    """Low-rank updates of q, k and v in both towers; patches merged in each frame, then across frames
    (TempMe 3.2 and 3.3). The feature of a frame is its class token, which is never merged.

    rank: r. frame_merges: patches of a frame that are merged in each layer before frames are joined; with
    the release's 2 a video costs 0.65 of the frozen ViT-B/32's FLOPs, with 4 half of them.
    joined_share: of the tokens of sequences that were just joined, merged before the attention.
    share: of the tokens that are left then, merged behind it. Padding frames are merged first, without
    weight.
    """

    rank: int = 8
    frame_merges: int = 2
    joined_share: float = 0.3
    share: float = 0.1

    fixed_frames: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("reads_class_token", "has_halves")

    def __post_init__(self) -> None:
        require("rank", self.rank, self.rank >= 1, "at least 1")
        require("frame_merges", self.frame_merges, self.frame_merges >= 0, "at least 0")
        require(
            "joined_share",
            self.joined_share,
            0 <= self.joined_share <= 0.5,
            "in 0..0.5",
        )
        require("share", self.share, 0 <= self.share <= 0.5, "in 0..0.5")

    def attach(self, clip: CLIP, frames: int) -> None:
        """Wrap the vision blocks; parametrize the projections of the text blocks."""
        vision, text, _ = towers(clip)
        self._check(vision, text, frames)
        self._attach_vision(vision, frames)
        for block in text.blocks:
            update(text, block, FusedLowRank(text, self.rank))

    def _check(
        self,
        vision: VisionTower,
        text: Tower,
        frames: int,
    ) -> None:
        for tower in (vision, text):
            limit = f"at most {tower.width}, the {tower.name} width"
            require("rank", self.rank, self.rank <= tower.width, limit)
        check_needs("tempme", self, vision)
        if vision.layers == 1 and frames > 1:
            raise ValueError("tempme joins frames below the last layer; this vision tower has one layer")

    def _attach_vision(self, vision: VisionTower, frames: int) -> None:
        last = vision.layers - 1
        groups = group_sizes(frames, min(MAX_JOINS, last))
        first_join = last - len(groups)
        # The sequences of a video that enter each joining layer.
        sequences = [frames]
        for group in groups:
            sequences.append(sequences[-1] // group)

        def make(i: int, block: nn.Module) -> Block:
            low_rank = FusedLowRank(vision, self.rank)
            if i == last:
                return ClassTokens(block, low_rank)
            if i < first_join:
                return FrameMerging(block, low_rank, self.frame_merges)

            join_number = i - first_join
            positions = GroupPositions(vision, sequences[join_number])
            return Joining(
                block,
                low_rank,
                positions,
                groups[join_number],
                self.joined_share,
                self.share,
            )

        wrap(vision, make)


def update(
    tower: Tower,
    block: nn.Module,
    low_rank: FusedLowRank,
) -> None:
    """Let the weights of q, k and v of a block read as updated; they themselves stay frozen."""
    places = tower.projections(block)
    parts_of: dict[tuple[nn.Module, str], list[int]] = {}
    for part, letter in enumerate("qkv"):
        module, name, _ = places[letter]
        parts_of.setdefault((module, name), []).append(part)

    for (module, name), parts in parts_of.items():
        read_as_changed(module, name, UpdatedWeight(low_rank, parts))
