"""Time and memory of a training step of each method, relative to tuning all of CLIP; the same batch for all.

    python tests/benchmarks/bench_tuning.py [batch frames [precision [METHOD ...]]]

ViT-B/32 with random weights, 32 words, on the GPU if there is one. Time: of the CPU (process time) or of the
GPU between two synchronisations, the least of three steps, methods in turn. Memory: on a GPU what torch had
allocated at most; on a CPU what autograd keeps for the backward pass, and gradients and AdamW's state. Behind
them the parameters that are trained, and what a video costs that is searched, of a frozen CLIP's: its FLOPs,
and the time to encode it, the least of three.
"""

import dataclasses
import sys
import time
from collections.abc import Callable

import torch

from pipelines.experiment.method_costs import flops
from vopcore.clip import blank, first_tuned_layer
from vopcore.config import Train
from vopcore.methods import METHODS, Method, tune
from vopcore.retriever import Retriever
from vopcore.training.batches import Batch
from vopcore.training.trainer import Tuner

# A method, its options, and the settings of its training.
ROWS: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "full": ("full", {}, {}),
    "cross_modal_adapter": ("cross_modal_adapter", {}, {}),
    "vop": ("vop", {}, {}),
    "vop_p": ("vop_p", {}, {}),
    "vop_c": ("vop_c", {}, {}),
    "vop_f": ("vop_f", {}, {}),
    "vop_fc": ("vop_fc", {}, {}),
    "tempme": ("tempme", {}, {}),
    "tempme, frame_merges 4": ("tempme", {"frame_merges": 4}, {}),
    "dgl": ("dgl", {}, {}),
    "dgl, transformer": ("dgl", {"space": "transformer"}, {}),
    "mv_adapter": ("mv_adapter", {}, {}),
    "prompt_switch": ("prompt_switch", {}, {}),
    "bias": ("bias", {}, {}),
    "partial": ("partial", {}, {}),
    "proj": ("proj", {}, {}),
    "partial, prefix_cache": ("partial", {}, {"prefix_cache": "bf16"}),
    "proj, prefix_cache": ("proj", {}, {"prefix_cache": "bf16"}),
    "vop, grad_checkpointing": ("vop", {}, {"grad_checkpointing": True}),
    "vop, micro_batch 1": ("vop", {}, {"micro_batch": 1}),
}
STEPS = 3


def main(batch_size: int, frames: int, precision: str, methods: list[str]) -> None:
    """Print a row per method: `full` first, then `methods`, or all."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = torch.randint(256, (batch_size, frames, 3, 224, 224), dtype=torch.uint8)
    tokens = torch.randint(1, 49405, (batch_size, 32))
    tokens[:, 0], tokens[:, 20], tokens[:, 21:] = 49406, 49407, 0
    mask = torch.ones(batch_size, frames, dtype=torch.bool)
    batch = Batch([str(i) for i in range(batch_size)], pixels, mask, tokens)
    print(f"{device}, batch {batch_size}, {frames} frames, {precision}")
    whole: tuple[float, float] | None = None
    frozen = flops_of(METHODS["zero_shot"](), frames)
    frozen_seconds = encoding(clip_with(METHODS["zero_shot"](), frames, precision, device), batch)

    for label, (name, options, settings) in ROWS.items():
        if methods and label not in ("full", *methods):
            continue
        method = METHODS[name](**options)
        one = tuner(clip_with(method, frames, precision, device), settings, precision)
        seconds, size = measure(one, kept(one.retriever, batch) if "prefix_cache" in settings else batch)
        whole = whole or (seconds, size)
        encoded = encoding(one.retriever, batch) / frozen_seconds
        print(
            f"{label:26}{seconds:9.3f} s {seconds / whole[0]:6.2f}{size / 2**20:10.0f} MiB"
            f"{size / whole[1]:6.2f}{sum(p.numel() for p in one.tuned.values()):14,}"
            f"{flops_of(method, frames) / frozen:6.2f}{encoded:6.2f}",
            flush=True,
        )


def flops_of(method: Method, frames: int) -> int:
    """Of one video, forward, counted and not computed."""
    with torch.device("meta"):
        return flops(tune(blank("ViT-B-32-quickgelu"), method, frames), frames)


def clip_with(method: Method, frames: int, precision: str, device: torch.device) -> Retriever:
    """A method on a CLIP of random weights."""
    torch.manual_seed(0)
    clip = tune(blank("ViT-B-32-quickgelu"), method, frames)
    return Retriever(clip, precision=precision).to(device)


def tuner(retriever: Retriever, settings: dict[str, object], precision: str) -> Tuner:
    """Ready to train."""
    train = Train(epochs=10, warmup=0, precision=precision, **settings)
    tuner = Tuner(retriever, train, 10, seed=0)
    tuner.model.train()
    return tuner


@torch.no_grad()
def encoding(retriever: Retriever, batch: Batch) -> float:
    """Seconds to encode the batch's first video, the least of three."""
    device = retriever.mean.device
    is_gpu = device.type == "cuda"
    clock = time.perf_counter if is_gpu else time.process_time
    pixels = batch.frames[:1].to(device)
    retriever.eval()

    seconds = []
    for _ in range(STEPS):
        began = clock()
        retriever.video(pixels)
        if is_gpu:
            torch.cuda.synchronize()
        seconds.append(clock() - began)
    return min(seconds)


def kept(retriever: Retriever, batch: Batch) -> Batch:
    """The batch as a prefix cache holds it, in bf16."""
    layer = first_tuned_layer(retriever.clip)
    x = [retriever.prefix(video.to(retriever.mean.device), layer).cpu() for video in batch.frames]
    return dataclasses.replace(batch, frames=torch.stack(x).bfloat16())


def measure(tuner: Tuner, batch: Batch) -> tuple[float, float]:
    """Seconds of a step and bytes it needs."""
    if tuner.retriever.mean.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        seconds = min(timed(tuner, batch, time.perf_counter) for _ in range(STEPS))
        return seconds, torch.cuda.max_memory_allocated()
    size = held(tuner, batch)
    seconds = min(timed(tuner, batch, time.process_time) for _ in range(STEPS - 1))
    state = 3 * sum(p.nbytes for p in tuner.tuned.values())  # gradient and two moments
    return seconds, size + state


def timed(tuner: Tuner, batch: Batch, clock: Callable[[], float]) -> float:
    """One step; it ends with the loss on the CPU, so the GPU has finished."""
    began = clock()
    tuner.step(batch)
    return clock() - began


def held(tuner: Tuner, batch: Batch) -> int:
    """The most bytes that autograd keeps at once in a step, each storage once, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in tuner.retriever.parameters()}
    counts: dict[int, int] = {}
    now = most = 0

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal now, most
            storage = tensor.untyped_storage()
            self.tensor, self.key, self.size = tensor, storage.data_ptr(), storage.nbytes()
            if self.key not in parameters:
                counts[self.key] = counts.get(self.key, 0) + 1
                now += self.size if counts[self.key] == 1 else 0
                most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            if self.key not in parameters:
                counts[self.key] -= 1
                now -= self.size if counts[self.key] == 0 else 0

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        tuner.step(batch)
    return most


if __name__ == "__main__":
    size, count, kind, *names = (*sys.argv[1:], *("4", "4", "fp32")[len(sys.argv) - 1 :])
    main(int(size), int(count), kind, names)
