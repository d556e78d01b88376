"""What every tuning method trains and costs, on any model, without weights."""

import re
from collections import Counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vopcore.clip import CLIP, blank, towers
from vopcore.methods import METHODS, tune, tuned
from vopcore.retriever import Retriever

# VoP, Table 1, times 119,826,432: the weights and biases of modules, so without in_proj_*, the two
# projections, positions, class and scale. ViT-B/32, default options, 12 frames.
PAPER = {
    "bias": (124_928, "the paper misses in_proj_bias, which is not named .bias"),
    "partial": (7_680_512, "the paper misses in_proj_weight and in_proj_bias"),
    "vop_f": (122_880, "the paper leaves out the frame embedding"),
    "vop_fp": (393_216, "the paper leaves out the frame embedding"),
    "vop_fc": (
        14_121_984,
        "the paper's 11.785 % is C - (P - F+P), a slip, and leaves out the frame embedding",
    ),
}


def cost_table(model: str, frames: int = 12) -> list[dict[str, Any]]:
    """A row per method with its default options. Raises ValueError for a model that cannot be tuned; a
    method whose options do not fit the model is a row that says so."""
    with torch.device("meta"):
        frozen = blank(model)
        total = sum(parameter.numel() for parameter in frozen.parameters())
        plain = flops(frozen, frames)

        rows = []
        for name in METHODS:
            rows.append(row(name, model, frames, total, plain))
        return rows


def row(
    name: str,
    model: str,
    frames: int,
    total: int,
    plain: int,
) -> dict[str, Any]:
    """One method: `parameters`, `percent` of CLIP's own `total`, and where they are."""
    try:
        clip = tune(blank(model), METHODS[name](), frames)
    except ValueError as error:
        return {"method": name, "refused": str(error)}

    count = sum(parameter.numel() for parameter in tuned(clip).values())
    out = {
        "method": name,
        "parameters": count,
        "percent": 100 * count / total,
        "by_tower": by_tower(clip),
        "by_kind": by_kind(clip),
        "extra_flops": flops(clip, frames) - plain,
        "frozen_flops": plain,
    }

    # what a paper prints is of its own model and frames
    is_of_paper = model.startswith("ViT-B-32") and frames == 12
    if name in PAPER and is_of_paper:
        number, why = PAPER[name]
        out["paper"] = number
        out["why"] = why
    return out


# what else is in vopcore.clip holds CLIP's own weights
OURS = ("vopcore.methods", "vopcore.clip.wrap")


def by_tower(clip: CLIP) -> dict[str, int]:
    """Parameters of `vision`, of `text`, and those `shared` by both (logit_scale among them)."""
    # a parameter that stands in both towers has a name in each
    towers_of: dict[int, set[str]] = {}
    for name, parameter in clip.named_parameters(remove_duplicate=False):
        named = {"vision" if "visual." in name else "text"}
        if name == "logit_scale":
            named = {"vision", "text"}
        towers_of.setdefault(id(parameter), set()).update(named)

    counts = {"vision": 0, "text": 0, "shared": 0}
    for parameter in tuned(clip).values():
        tower, *others = towers_of[id(parameter)]
        if others:
            tower = "shared"
        counts[tower] += parameter.numel()
    return counts


def by_kind(clip: CLIP) -> dict[str, int]:
    """Parameters by the class of ours that holds them (`frame prompts`), the rest being CLIP's own."""
    counts: Counter[str] = Counter()
    for name, parameter in tuned(clip).items():
        kind = "CLIP's own"
        holder_name = name.rpartition(".")[0]

        # from the module that holds it outwards, up to the first that is ours
        while holder_name:
            holder = type(clip.get_submodule(holder_name))
            if holder.__module__.startswith(OURS):
                kind = _in_words(holder.__name__)
                break
            holder_name = holder_name.rpartition(".")[0]
        counts[kind] += parameter.numel()
    return dict(counts)


def _in_words(class_name: str) -> str:
    """`FramePrompts` is `frame prompts`."""
    spaced = re.sub(r"(?<!^)(?=[A-Z])", " ", class_name)
    return spaced.lower()


def flops(clip: CLIP, frames: int) -> int:
    """Multiplications and additions of one video, forward. Freezes `clip`."""
    clip.requires_grad_(False)
    height, width = towers(clip).vision.image_size
    pixels = torch.zeros(
        1,
        frames,
        3,
        height,
        width,
        dtype=torch.uint8,
        device="meta",
    )
    with FlopCounterMode(display=False) as counter:
        Retriever(clip).video(pixels)
    return counter.get_total_flops()


def as_text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table to read."""
    towers = f"{'vision':>13}{'text':>12}{'shared':>9}"
    lines = [f"{'method':20}{'trained':>13}{'% of CLIP':>11}{towers}{'+GFLOPs':>9}  what"]
    for one in rows:
        if "refused" in one:
            lines.append(f"{one['method']:20}  {one['refused']}")
            continue

        trained = f"{one['method']:20}{one['parameters']:>13,}{one['percent']:>11.3f}"
        counts = one["by_tower"]
        by_tower = f"{counts['vision']:>13,}{counts['text']:>12,}{counts['shared']:>9,}"
        gigaflops = one["extra_flops"] / 1e9
        kinds = [f"{count:,} {kind}" for kind, count in one["by_kind"].items()]
        what = ", ".join(kinds) or "nothing"
        lines.append(f"{trained}{by_tower}{gigaflops:>9.2f}  {what}")
        if "paper" in one:
            lines.append(f"{'':20}{one['paper']:>13,}  in the paper: {one['why']}")

    # every row that was not refused knows it
    frozen = next((one["frozen_flops"] for one in rows if "frozen_flops" in one), 0)
    lines.append(f"{'frozen CLIP, one video':77}{frozen / 1e9:>10.2f} GFLOPs")
    return "\n".join(lines)
