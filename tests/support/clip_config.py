"""The config file of a CLIP small enough for any test, to be loaded as a user's own model."""

import json
from pathlib import Path

VISION = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def write_clip_config(
    path: Path,
    vision: dict[str, int] | None = None,
    text: dict[str, int] | None = None,
    quick_gelu: bool = False,
) -> Path:
    """Write the config with these changes of its towers; returns `path`."""
    config = {
        "embed_dim": 16,
        "vision_cfg": VISION | (vision or {}),
        "text_cfg": TEXT | (text or {}),
        "quick_gelu": quick_gelu,
    }
    path.write_text(json.dumps(config))
    return path
