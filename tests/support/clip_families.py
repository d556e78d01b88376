"""A small random CLIP of every family of towers: the real block classes, shrunk in depth and width."""

import json
from pathlib import Path

import torch
from torch import nn

from vopcore.clip import blank

WIDTH = 48

# By family: a timm model, and how open_clip uses it in its configs.
TIMM = {
    "siglip": ("vit_base_patch16_siglip_224", {"timm_pool": "map", "timm_proj": "none"}),
    "mobileclip": ("vit_base_mci_224", {"timm_pool": "token", "timm_proj": None}),
    "vitamin": ("vitamin_small_224", {"timm_pool": "", "timm_proj": "linear"}),
    "pe_core": ("vit_pe_core_tiny_patch16_384", {"timm_pool": "map", "timm_proj": None}),
    "eva01": ("eva_giant_patch14_224", {"timm_pool": "token", "timm_proj": None}),
    "eva02": ("eva02_base_patch16_clip_224", {"timm_pool": "token", "timm_proj": None}),
    "eva02_e": ("eva02_enormous_patch14_clip_224", {"timm_pool": "token", "timm_proj": None}),
}
SMALL = {"depth": 2, "embed_dim": WIDTH, "num_heads": 3, "img_size": 32}
SMALL_OF = {
    "mobileclip": {"img_size": 64, "embed_dim": 768, "num_heads": 12},
    "vitamin": {"img_size": 64},
    "pe_core": {"ref_feat_shape": (2, 2), "attn_pool_num_heads": 3},
    "eva01": {"img_size": 28},
    "eva02": {"ref_feat_shape": (2, 2)},
    "eva02_e": {"img_size": 28},
}
CAUSAL = {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 2, "layers": 2}
FULL = CAUSAL | {
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
    "norm_kwargs": {"eps": 1e-6},
}
VIT = {"layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 8, "image_size": 16}
OPEN_CLIP = {
    "clipa": (VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}, FULL),
    "metaclip2": (VIT, CAUSAL | {"pool_type": "eos", "eos_id": 98}),
    "coca": (
        VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        CAUSAL | {"embed_cls": True, "output_tokens": True},
    ),
}
HUGGING_FACE = {
    "xlm_roberta": {
        "model_type": "xlm-roberta",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
        "max_position_embeddings": 40,
    },
    "nllb": {
        "model_type": "m2m_100",
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 64,
        "vocab_size": 99,
        "max_position_embeddings": 40,
    },
}
WHOLE = {
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 32, "patch_size": None},
    "convnext": {
        "timm_model_name": "convnext_atto",
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 32,
    },
}
WITH_BLOCKS = [*TIMM, *OPEN_CLIP, *HUGGING_FACE]
FAMILIES = [*WITH_BLOCKS, *WHOLE]


def write_config(folder: Path, family: str) -> Path:
    """The model config of a small CLIP of this family; what of Hugging Face it needs stands beside it."""
    config = {"embed_dim": 24, "vision_cfg": dict(VIT), "text_cfg": dict(CAUSAL)}
    if family in TIMM:
        timm_name, options = TIMM[family]
        config["vision_cfg"] = {"timm_model_name": timm_name, **options}
        config["custom_text"] = True
        if family == "siglip":
            config |= {"text_cfg": dict(FULL), "init_logit_bias": -10, "embed_dim": WIDTH}
    elif family in OPEN_CLIP:
        vision, text = OPEN_CLIP[family]
        config |= {"vision_cfg": dict(vision), "text_cfg": dict(text)}
        if family == "coca":
            decoder = {"context_length": 16, "vocab_size": 99, "width": 24, "heads": 2, "layers": 1}
            config["multimodal_cfg"] = decoder
    elif family in HUGGING_FACE:
        (folder / "text").mkdir(exist_ok=True)
        (folder / "text" / "config.json").write_text(json.dumps(HUGGING_FACE[family]))
        pooler = "cls_pooler" if family == "nllb" else "mean_pooler"
        config["text_cfg"] = {"hf_model_name": str(folder / "text"), "hf_pooler_type": pooler}
    else:
        config["vision_cfg"] = dict(WHOLE[family])

    path = folder / f"{family}.json"
    path.write_text(json.dumps(config))
    return path


def family_clip(folder: Path, family: str, monkeypatch, seed: int = 0) -> nn.Module:
    """A small CLIP of this family with weights at which things matter."""
    if family in TIMM:
        shrink(monkeypatch, SMALL | SMALL_OF.get(family, {}))
    torch.manual_seed(seed)
    clip = blank(str(write_config(folder, family)))
    for name, parameter in clip.named_parameters():
        if name.endswith(("bias", "latent")):
            nn.init.normal_(parameter, std=0.1)  # zeros would hide mistakes
    return clip


def shrink(monkeypatch, options: dict[str, object]) -> None:
    """Let timm build its models with these options on top of their own."""
    import timm

    build = timm.create_model

    def build_small(name: str, **given: object) -> nn.Module:
        if name.startswith("vitamin"):
            return build_vitamin(given, options)
        return build(name, **(given | options))

    monkeypatch.setattr(timm, "create_model", build_small)


def build_vitamin(given: dict[str, object], options: dict[str, object]) -> nn.Module:
    """timm's ViTamin-S with narrower stages: their widths are arguments of a function that it calls."""
    from timm.models import vitamin

    stages = vitamin.VitCfg(embed_dim=(16, 32, WIDTH), depths=(1, 1, 1), stem_width=16, head_type="1d")
    arguments = {
        "embed_cfg": stages,
        "embed_dim": WIDTH,
        "depth": options["depth"],
        "num_heads": 3,
        "mlp_layer": vitamin.GeGluMlp,
        "mlp_ratio": 2.0,
        "class_token": False,
        "global_pool": "avg",
        "img_size": options["img_size"],
    }
    given.pop("pretrained", None)
    return vitamin._create_vitamin("vitamin_small_224", pretrained=False, **(arguments | given))


def inputs(clip: nn.Module, frames: int, videos: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """frames UInt8 [B, F, 3, H, W] and token ids [B, 16]: start 97, words, end 98, padding."""
    from vopcore.clip import towers

    generator = torch.Generator().manual_seed(seed)
    height, width = towers(clip).vision.image_size
    pixels = torch.randint(256, (videos, frames, 3, height, width), generator=generator, dtype=torch.uint8)

    text = getattr(clip, "text", None)
    padding = getattr(getattr(text, "config", None), "pad_token_id", 0)
    ids = torch.randint(3, 97, (videos, 16), generator=generator)
    ids[:, 0] = 97
    for row in range(videos):
        end = 4 + row
        ids[row, end] = 98
        ids[row, end + 1 :] = padding
    return pixels, ids
