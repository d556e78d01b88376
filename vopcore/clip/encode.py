"""From pixels and token ids to features, through towers that may be wrapped."""

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from vopcore.clip.towers import pool_type, text_module
from vopcore.clip.wrap import VideoBlock


def encode_text(clip: nn.Module, tokens: Tensor) -> Tensor:
    """tokens Int [N, L], L <= context length -> features [N, D] at the end token, not normalised.

    open_clip adds all 77 positions whatever the length; here a text of 32 words costs 32 words.
    """
    tower, length = text_module(clip), tokens.shape[1]
    if length > clip.context_length:
        raise ValueError(f"tokens {list(tokens.shape)} are longer than the context of {clip.context_length}")
    x = tower.token_embedding(tokens)
    x = x + tower.positional_embedding[:length].to(x.dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    eos = getattr(clip, "text_eos_id", None) or getattr(tower, "eos_id", None)
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
    batch, num_frames = frames.shape[:2]
    visual, images = clip.visual, frames.flatten(0, 1)
    if isinstance(visual.transformer.resblocks[0], VideoBlock):
        if mask is None and clip.tuning.frames != num_frames:
            mask = torch.ones(batch, num_frames, dtype=torch.bool, device=frames.device)
        x = visual.transformer(visual._embeds(images), attn_mask=mask)
        x = visual._pool(x)[0]
        features = x if visual.proj is None else x @ visual.proj
    else:
        features = visual(images)
    return features.unflatten(0, (batch, num_frames))
