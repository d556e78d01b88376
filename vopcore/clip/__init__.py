"""The seams of open_clip: load a CLIP, find its towers, wrap their blocks, encode. Its only importer."""

from vopcore.clip.blindness import check_not_blind
from vopcore.clip.encode import (
    encode_from,
    encode_prefix,
    encode_text,
    encode_video,
    first_tuned_layer,
    looks_across_frames,
    prefix_hash,
    prefix_shape,
    set_grad_checkpointing,
    text_length,
)
from vopcore.clip.frozen import (
    empty_copy,
    freeze,
    frozen_hash,
    keep_in_bf16,
    keep_in_eval,
    share,
    stop_dropping,
    thaw,
)
from vopcore.clip.interface import CLIP, Tuning
from vopcore.clip.load import (
    Preprocessing,
    activation,
    blank,
    load,
    model_input,
    model_names,
    normalisation,
    preprocessing,
)
from vopcore.clip.tokenizer import Tokenizer, text_settings, tokenizer, tokenizer_name
from vopcore.clip.tokens import Block, Tokens
from vopcore.clip.towers import Tower, feature_parameters, model_name, towers
from vopcore.clip.wrap import Prompted, Prompts, with_prompts, wrap

__all__ = [
    "CLIP",
    "Block",
    "Preprocessing",
    "Prompted",
    "Prompts",
    "Tokenizer",
    "Tokens",
    "Tower",
    "Tuning",
    "activation",
    "blank",
    "check_not_blind",
    "empty_copy",
    "encode_from",
    "encode_prefix",
    "encode_text",
    "encode_video",
    "feature_parameters",
    "first_tuned_layer",
    "freeze",
    "frozen_hash",
    "keep_in_bf16",
    "keep_in_eval",
    "load",
    "looks_across_frames",
    "model_input",
    "model_name",
    "model_names",
    "normalisation",
    "prefix_hash",
    "prefix_shape",
    "preprocessing",
    "set_grad_checkpointing",
    "share",
    "stop_dropping",
    "text_length",
    "text_settings",
    "thaw",
    "tokenizer",
    "tokenizer_name",
    "towers",
    "with_prompts",
    "wrap",
]
