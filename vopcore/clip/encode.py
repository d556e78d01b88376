"""From pixels and token ids to features, through towers whose blocks may be a method's; for frames also in
two parts: through the blocks that nothing tunes, and from there.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vopcore.clip.frozen import update
from vopcore.clip.interface import CLIP
from vopcore.clip.tokens import Block, Tokens
from vopcore.clip.towers import VisionTower, text_tower, vision_tower


def encode_text(clip: CLIP, tokens: Tensor) -> Tensor:
    """tokens Int [N, L], L <= context length -> features [N, D], not normalised.

    A text of 32 words costs 32 words, where open_clip computes the whole context.
    """
    if tokens.shape[1] > clip.context_length:
        raise ValueError(f"tokens {list(tokens.shape)} are longer than the context of {clip.context_length}")
    return text_tower(clip).encode(tokens)


def text_length(
    clip: CLIP,
    tokens: Tensor,
    multiple: int = 1,
) -> int:
    """Positions of tokens Int [N, L] that a batch must be read to: its longest text, up to a `multiple`."""
    longest = text_tower(clip).longest(tokens)
    rounded_up = math.ceil(longest / multiple) * multiple
    return min(rounded_up, tokens.shape[1])


def encode_video(
    clip: CLIP,
    frames: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """frames Float [B, F, 3, H, W], normalised; mask Bool [B, F] of real frames -> features [B, F, D]."""
    num_frames = frames.shape[1]
    alone = frames.flatten(0, 1)
    x = vision_tower(clip).embed(alone)
    return _encode_from(
        clip,
        x,
        num_frames,
        mask,
        0,
    )


def encode_prefix(
    clip: CLIP,
    frames: Tensor,
    layer: int,
) -> Tensor:
    """frames Float [N, 3, H, W], normalised -> what enters vision block `layer`: [N, L, width].

    Past the last block of a tower that reads its class token, this token alone: L = 1.
    """
    vision = vision_tower(clip)
    x = vision.embed(frames)
    tokens = vision.tokens(x, 1, None)
    if layer:
        blocks = vision.blocks[:layer]
        tokens = run_blocks(tokens, blocks)

    if _class_token_alone(vision, layer):
        return tokens.x[:, :1]
    return tokens.x


def encode_from(
    clip: CLIP,
    x: Tensor,
    mask: Tensor | None,
    layer: int,
) -> Tensor:
    """x [B, F, L, width], what `encode_prefix` gave -> features [B, F, D], as of `encode_video`."""
    num_frames = x.shape[1]
    alone = x.flatten(0, 1)
    return _encode_from(
        clip,
        alone,
        num_frames,
        mask,
        layer,
    )


def prefix_shape(clip: CLIP, layer: int) -> tuple[int, int]:
    """[L, width] of what `encode_prefix` gives for one frame."""
    vision = vision_tower(clip)
    length = vision.length
    if _class_token_alone(vision, layer):
        length = 1
    return length, vision.width


def first_tuned_layer(clip: CLIP) -> int:
    """The first vision block that tuning changes, counted from 0; the number of blocks if none is.

    Blocks before it, and the embedding of patches, are frozen and see each frame on its own.
    """
    vision = vision_tower(clip)
    if not vision.has_blocks or _is_tuned(vision.embedding().values()):
        return 0

    for layer, block in enumerate(vision.blocks):
        is_tuned = _is_tuned(block.parameters())
        if is_tuned or looks_across_frames(block) or _shortens(block):
            return layer
    return vision.layers


def _is_tuned(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def looks_across_frames(module: CLIP | nn.Module) -> bool:
    """Whether the tokens of a frame depend on the other frames of its video, in a CLIP or in one of its
    blocks.
    """
    blocks = [inner for inner in module.modules() if isinstance(inner, Block)]
    return any(block.across_frames for block in blocks)


def _shortens(module: nn.Module) -> bool:
    """Whether a block hands on fewer tokens than enter it."""
    blocks = [inner for inner in module.modules() if isinstance(inner, Block)]
    return any(block.shortens for block in blocks)


def prefix_hash(clip: CLIP, layer: int) -> str:
    """SHA-256 over the frozen weights before vision block `layer`."""
    vision = vision_tower(clip)
    digest = hashlib.sha256()
    embedding = vision.embedding()
    for name, parameter in sorted(embedding.items()):
        update(digest, name, parameter)

    for number, block in enumerate(vision.blocks[:layer]):
        for name, parameter in sorted(block.named_parameters()):
            update(digest, f"{number}.{name}", parameter)
    return digest.hexdigest()


def set_grad_checkpointing(clip: CLIP, enabled: bool) -> None:
    """Recompute the activations of blocks in the backward pass instead of holding them, or not.
    (open_clip's own method of this name cannot switch it off in a text tower of Hugging Face.)
    """
    vision_tower(clip).set_grad_checkpointing(enabled)
    text_tower(clip).set_grad_checkpointing(enabled)


def run_blocks(
    tokens: Tokens,
    blocks: Iterable[nn.Module],
    grad_checkpointing: bool = False,
) -> Tokens:
    """Through `blocks`, one after the other; recomputed in the backward pass if `grad_checkpointing`."""
    for block in blocks:
        if grad_checkpointing:
            # x is an argument of its own: checkpoint looks there for the device whose random state it keeps
            tokens = checkpoint(
                _run,
                tokens.x,
                tokens,
                block,
                use_reentrant=False,
            )
        else:
            tokens = tokens.run(block)
    return tokens


def _run(
    x: Tensor,
    tokens: Tokens,
    block: nn.Module,
) -> Tokens:
    return tokens.with_x(x).run(block)


def _class_token_alone(vision: VisionTower, layer: int) -> bool:
    """Whether nothing but the class token is read of what enters block `layer`: past the last one."""
    return vision.reads_class_token and layer == vision.layers


def _encode_from(
    clip: CLIP,
    x: Tensor,
    frames: int,
    mask: Tensor | None,
    layer: int,
) -> Tensor:
    """The vision tower from block `layer` on; x [B * F, L, width] -> features [B, F, D]."""
    vision = vision_tower(clip)
    tokens = vision.tokens(x, frames, mask)
    if vision.has_blocks and layer < vision.layers:
        recompute = vision.grad_checkpointing
        before_the_last = vision.blocks[layer:-1]
        tokens = run_blocks(tokens, before_the_last, recompute)

        # Of the last block a tower may need nothing but its class tokens.
        read = 1 if vision.reads_class_token else None
        tokens = replace(tokens, read=read)
        tokens = run_blocks(tokens, vision.blocks[-1:], recompute)

    pooled = vision.pool(tokens)
    features = pooled.unflatten(0, (-1, tokens.frames))
    if tokens.frames < frames:
        # Each of the frames that a method has merged is given their feature.
        times = frames // tokens.frames
        features = features.repeat_interleave(times, dim=1)
    return features
