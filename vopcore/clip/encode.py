"""From pixels and token ids to features, through towers that may be wrapped; also in two parts, through the
blocks that nothing tunes and from there.
"""

import hashlib

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vopcore.clip.autocast import autocast_dtype
from vopcore.clip.frozen import update
from vopcore.clip.towers import pool_type, text_module
from vopcore.clip.wrap import PerFrame, VideoBlock

AFTER = ("transformer.", "ln_post.", "proj")  # parameters of the vision tower behind its embedding


def encode_text(clip: nn.Module, tokens: Tensor) -> Tensor:
    """tokens Int [N, L], L <= context length -> features [N, D] at the end token, not normalised.

    open_clip adds all 77 positions whatever the length; here a text of 32 words costs 32 words, and in
    training mode a batch costs its longest text: the tower is causal, so what follows an end is not seen.
    """
    tower = text_module(clip)
    if tokens.shape[1] > clip.context_length:
        raise ValueError(f"tokens {list(tokens.shape)} are longer than the context of {clip.context_length}")
    eos = getattr(clip, "text_eos_id", None) or getattr(tower, "eos_id", None)
    if clip.training and not tokens.is_meta:
        ends = tokens if pool_type(clip) == "argmax" else (tokens == eos).int()
        tokens = tokens[:, : int(ends.argmax(dim=-1).max()) + 1]
    length = tokens.shape[1]
    x = tower.token_embedding(tokens)
    x = x + tower.positional_embedding[:length].to(x.dtype)
    x = x.to(
        autocast_dtype(x) or x.dtype
    )  # under autocast the residual stream is bf16, as that of the frames
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = text_global_pool(tower.ln_final(x), tokens, pool_type(clip), eos_token_id=eos)
    match tower.text_projection:
        case None:
            return x
        case nn.Linear() as project:
            return project(x)
        case weight:
            return x @ weight


def encode_video(clip: nn.Module, frames: Tensor, mask: Tensor | None) -> Tensor:
    """frames Float [B, F, 3, H, W], normalised; mask Bool [B, F] of real frames -> features [B, F, D]."""
    x = clip.visual._embeds(frames.flatten(0, 1))
    return _features(clip, x, frames.shape[:2], mask, 0)


def encode_prefix(clip: nn.Module, frames: Tensor, layer: int) -> Tensor:
    """frames Float [N, 3, H, W], normalised -> what enters vision block `layer`: [N, L, width].

    Past the last block, the class token alone: L = 1.
    """
    x = clip.visual._embeds(frames)
    blocks = clip.visual.transformer.resblocks
    for block in blocks[:layer]:
        x = block(x)
    return x[:, :1] if layer == len(blocks) else x


def encode_from(clip: nn.Module, x: Tensor, mask: Tensor | None, layer: int) -> Tensor:
    """x [B, F, L, width], what `encode_prefix` gave -> features [B, F, D], as of `encode_video`."""
    return _features(clip, x.flatten(0, 1), x.shape[:2], mask, layer)


def first_tuned_layer(clip: nn.Module) -> int:
    """The first vision block that tuning changes, counted from 0; the number of blocks if none is.

    Blocks before it, and the embedding of patches, are frozen and see each frame on its own.
    """
    visual = clip.visual
    if any(parameter.requires_grad for parameter in _embedding(visual).values()):
        return 0
    blocks = visual.transformer.resblocks
    return next((i for i, block in enumerate(blocks) if _changes(block)), len(blocks))


def prefix_hash(clip: nn.Module, layer: int) -> str:
    """SHA-256 over the frozen weights before vision block `layer`."""
    digest = hashlib.sha256()
    for name, parameter in sorted(_embedding(clip.visual).items()):
        update(digest, name, parameter)
    for i, block in enumerate(clip.visual.transformer.resblocks[:layer]):
        for name, parameter in sorted(block.named_parameters()):
            update(digest, f"{i}.{name}", parameter)
    return digest.hexdigest()


def _embedding(visual: nn.Module) -> dict[str, nn.Parameter]:
    """What comes before the first block, by name."""
    return {name: p for name, p in visual.named_parameters() if not name.startswith(AFTER)}


def _changes(block: nn.Module) -> bool:
    across_frames = isinstance(block, VideoBlock) and not isinstance(block, PerFrame)
    return across_frames or any(parameter.requires_grad for parameter in block.parameters())


def _features(clip: nn.Module, x: Tensor, shape: torch.Size, mask: Tensor | None, layer: int) -> Tensor:
    """The vision tower from block `layer` on; x [B * F, L, width], shape [B, F]."""
    visual, transformer = clip.visual, clip.visual.transformer
    if not isinstance(transformer.resblocks[0], VideoBlock):
        mask = None  # no block looks across frames
    elif mask is None and clip.tuning.frames != shape[1]:
        mask = torch.ones(shape, dtype=torch.bool, device=x.device)
    for block in transformer.resblocks[layer:]:
        if transformer.grad_checkpointing:
            x = checkpoint(block, x, None, None, mask, use_reentrant=False)
        else:
            x = block(x, attn_mask=mask)
    x = visual._pool(x)[0]
    features = x if visual.proj is None else x @ visual.proj
    return features.unflatten(0, shape)
