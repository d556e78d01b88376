"""What tuning costs on other CLIPs, relative to full fine-tuning of the same: parameters, GFLOPs, CPU
seconds.

    python tests/benchmarks/bench_backbones.py [videos frames rounds]

Random weights of the real configs. A step is forward and backward of a batch; each round takes every method
once, and what is printed is the median of the rounds' ratios.
"""

import statistics
import sys
import time

import torch

from pipelines.experiment.method_costs import flops
from vopcore.clip import blank, share, text_settings, towers
from vopcore.methods import METHODS, tune, tuned
from vopcore.retriever import Retriever
from vopcore.training.loss import contrastive

MODELS = ("ViT-B-32-quickgelu", "ViT-B-16-SigLIP2", "PE-Core-B-16", "MobileCLIP2-B")
COMPARED = ("full", "vop", "cross_modal_adapter")
FLOP_FRAMES = 12


def seconds_of_step(retriever: Retriever, pixels: torch.Tensor, ids: torch.Tensor) -> float:
    """CPU seconds of one step."""
    began = time.process_time()
    loss = contrastive(*retriever(pixels, None, ids), None, retriever)
    loss.backward()
    spent = time.process_time() - began
    for parameter in retriever.parameters():
        parameter.grad = None
    return spent


def compare(model: str, videos: int, frames: int, rounds: int) -> list[str]:
    """A row of the table for each method."""
    torch.manual_seed(0)
    clip = blank(model)
    words = min(clip.context_length, 32) if model.startswith("ViT-B-32") else clip.context_length
    height, width = towers(clip).vision.image_size
    pixels = torch.randint(256, (videos, frames, 3, height, width), dtype=torch.uint8)
    ids = torch.randint(1, min(text_settings(clip)["vocab_size"], 49000), (videos, words))
    ids[:, -1] = text_settings(clip)["vocab_size"] - 1

    retrievers = {}
    for name in COMPARED:
        retrievers[name] = Retriever(tune(share(clip), METHODS[name](), frames)).train()
    ratios = {name: [] for name in COMPARED}
    for round_number in range(rounds + 1):
        spent = {name: seconds_of_step(retrievers[name], pixels, ids) for name in COMPARED}
        if round_number:  # the first warms up
            for name in COMPARED:
                ratios[name].append(spent[name] / spent["full"])

    rows = []
    for name in COMPARED:
        with torch.device("meta"):
            meta = tune(blank(model), METHODS[name](), FLOP_FRAMES)
        count = sum(parameter.numel() for parameter in tuned(retrievers[name]).values())
        gflops = flops(meta, FLOP_FRAMES) / 1e9
        rows.append(
            f"| {model} | {name} | {count:,} | {gflops:.1f} | {statistics.median(ratios[name]):.2f} |"
        )
    return rows


def main(videos: int = 2, frames: int = 4, rounds: int = 5) -> None:
    """The table."""
    print("| model | method | trained | GFLOPs of a video | CPU step / full |\n|---|---|---|---|---|")
    for model in MODELS:
        for row in compare(model, videos, frames, rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
