"""The seams of open_clip: load a CLIP, find its towers, wrap their blocks, encode. Its only importer."""

from vopcore.clip.block import LeanBlock, attend, lean, lean_norm
from vopcore.clip.encode import (
    encode_from,
    encode_prefix,
    encode_text,
    encode_video,
    first_tuned_layer,
    prefix_hash,
)
from vopcore.clip.frozen import Tuning, freeze, frozen_hash, keep_in_bf16, share, thaw
from vopcore.clip.load import activation, blank, load, normalisation, tokenizer
from vopcore.clip.towers import Tower, model_name, towers
from vopcore.clip.wrap import Block, PerFrame, Prompted, Prompts, VideoBlock, with_prompts, wrap

__all__ = [
    "Block",
    "LeanBlock",
    "PerFrame",
    "Prompted",
    "Prompts",
    "Tower",
    "Tuning",
    "VideoBlock",
    "activation",
    "attend",
    "blank",
    "encode_from",
    "encode_prefix",
    "encode_text",
    "encode_video",
    "first_tuned_layer",
    "freeze",
    "frozen_hash",
    "keep_in_bf16",
    "lean",
    "lean_norm",
    "load",
    "model_name",
    "normalisation",
    "prefix_hash",
    "share",
    "thaw",
    "tokenizer",
    "towers",
    "with_prompts",
    "wrap",
]
