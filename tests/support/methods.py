"""Tiny random CLIPs of both classes, batches for them, and small options for every method."""

import open_clip
import torch
from torch import Tensor, nn

from vopcore.methods import METHODS, tune

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

FRAMES, IMAGE, WORDS = 4, 16, 12
CLASSES = [open_clip.CLIP, open_clip.CustomTextCLIP]
TRAINED = [name for name in METHODS if name != "zero_shot"]
OPTIONS = {  # for towers of 3 and 2 layers
    "adapter_attn": {"hidden": 4},
    "adapter_ffn": {"hidden": 4},
    "vop": {"text_prompts": 2, "vision_prompts": 3},
    "vop_p": {"text_prompts": 2, "vision_prompts": 3, "specific": 2},
    "vop_c": {"text_prompts": 2, "vision_prompts": 3, "specific": 2},
    "vop_f": {"text_prompts": 2, "vision_prompts": 3, "spatial_layers": 1},
    "vop_fp": {"text_prompts": 2, "vision_prompts": 3, "specific": 2, "spatial_layers": 1},
    "vop_fc": {"text_prompts": 2, "vision_prompts": 3, "specific": 2, "spatial_layers": 1},
    "cross_modal_adapter": {"reduction": 4, "shared": 8},
    "coop": {"prompts": 3},
    "vpt": {"prompts": 3},
    "maple": {"prompts": 2, "depth": 1},
    "lora": {"rank": 2},
    "tempme": {"rank": 2},
    "mv_adapter": {"words": 12},
}


def tiny_clip(cls=open_clip.CLIP, seed=0, **changes) -> nn.Module:
    """A CLIP of 3 vision and 2 text layers, 48 and 32 wide, with an output scale at which things matter."""
    torch.manual_seed(seed)
    vision = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": IMAGE}
    text = {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 2, "layers": 2}
    clip = cls(24, vision | changes.get("vision", {}), text | changes.get("text", {}), quick_gelu=True)
    for name, parameter in clip.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)  # zeros would hide mistakes
    clip.model_name = "tiny"
    clip.visual.preprocess_cfg = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}
    return clip.eval()


def method(name, **changes):
    """A method by name with options small enough for `tiny_clip`."""
    return METHODS[name](**OPTIONS.get(name, {}) | changes)


def tuned_clip(name, cls=open_clip.CLIP, frames=FRAMES, stir=0.0, **changes) -> nn.Module:
    """`tiny_clip` tuned by a method; `stir` adds noise to the new parameters, so that none is zero."""
    clip = tune(tiny_clip(cls), method(name, **changes), frames)
    if stir:
        for parameter in clip.parameters():
            if parameter.requires_grad:
                parameter.data += stir * torch.randn_like(parameter)
    return clip


def batch(videos=3, frames=FRAMES, seed=1) -> tuple[Tensor, Tensor]:
    """frames UInt8 [B, F, 3, H, W] and tokens [B, WORDS]: start 97, words, end 98 at different places,
    zeros."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (videos, frames, 3, IMAGE, IMAGE), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 97, (videos, WORDS), generator=generator)
    tokens[:, 0] = 97
    for i in range(videos):
        end = 4 + i % (WORDS - 5)
        tokens[i, end], tokens[i, end + 1 :] = 98, 0
    return pixels, tokens
