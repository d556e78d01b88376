"""Hours and dollars on cluster.yaml's machines: python tests/benchmarks/cluster_cost.py [key=value ...]

Arithmetic on the numbers below; each can be given another value: gpu_tflops=60 videos=2e5 price_gpu=0.5.
What was measured says so (tests/benchmarks/RESULTS.md); the rest are assumptions.
"""

import sys
from dataclasses import dataclass, fields, replace

# What one H200 reached, as a share of its peak: 989 TFLOP/s in bf16, 495 in tf32. Measured with batches of
# 128 videos of 12 frames on ViT-B/32; a step of vop is 2 x 109 GFLOPs, one of proj hardly more than 106.
VOP_BF16 = 1100 * 0.218 / 989
VOP_TF32 = 700 * 0.218 / 495
FORWARD_BF16 = 2700 * 0.106 / 989

# Peaks of the A10G of a g5.2xlarge, TFLOP/s, dense.
A10G_BF16 = 70
A10G_TF32 = 35
A10G_FP32 = 31


@dataclass(frozen=True)
class Inputs:
    """One run: ingest all videos, tune one method on some, measure it on the others."""

    # the data
    videos: float = 14_926  # ActivityNet Captions: 10,009 + 4,917
    train_share: float = 0.67
    video_mb: float = 12  # assumed: 117 s of 640x360 at 0.8 Mbit/s
    # per video
    decode_s: float = 1.39  # CPU; measured 0.712 for 64 frames of 60 s at 640x360 (GOP 250), scaled to 117 s
    shard_mb: float = 1.57  # measured 24.5 kB per JPEG frame, 64 frames
    read_s: float = 0.0051  # CPU; measured, 12 JPEG frames to a batch: 196 videos a second
    answer_s: float = 0.03  # assumed: until a bucket answers one read; reads of several threads overlap
    forward_gflops: float = 109  # counted by pipelines/methods.py: ViT-B/32, 12 frames, vop
    backward_ratio: float = 1.0  # of forward: through activations only, as CLIP's weights are frozen
    epochs: float = 5
    # the machines, as many as cluster.yaml allows
    cpu_nodes: float = 8
    cpus: float = 16  # c6i.4xlarge
    gpu_nodes: float = 4  # g5.2xlarge
    gpu_cpus: float = 8
    read_threads: float = 2  # resources.cpus_per_worker
    gpu_tflops: float = VOP_BF16 * A10G_BF16  # estimated
    network_mb_s: float = 500  # assumed, per machine, S3 to disk
    disk_gb: float = 100  # resources.cache.gigabytes
    overhead_h: float = 0.25  # assumed: machines start and install (twice), ten idle minutes at the end
    # dollars per hour: on demand, Linux, us-east-1; spot is usually a third to a half of it
    price_head: float = 0.192
    price_cpu: float = 0.68
    price_gpu: float = 1.212


@dataclass(frozen=True)
class Cost:
    """Hours of each stage, the hours that each resource alone would take, and dollars."""

    ingest_h: float
    tune_h: float
    ingest_by: dict[str, float]
    tune_by: dict[str, float]
    dollars: float


def cost(i: Inputs) -> Cost:
    """Every stage takes as long as its slowest resource; the resources of one stage work side by side."""
    ingest = {
        "decode CPU": i.videos * i.decode_s / (i.cpu_nodes * i.cpus),
        "network": i.videos * (i.video_mb + i.shard_mb) / (i.cpu_nodes * i.network_mb_s),
    }
    looks = i.videos * (i.train_share * i.epochs + (1 - i.train_share))  # videos that go through a GPU
    flops = i.videos * (i.train_share * i.epochs * (1 + i.backward_ratio) + (1 - i.train_share))
    fits = min(1.0, i.disk_gb * 1000 / (i.videos * i.shard_mb))  # of the shards, in each machine's cache
    fetched = i.videos * i.shard_mb * fits + looks / i.gpu_nodes * i.shard_mb * (1 - fits)  # MB per machine
    tune = {
        "GPU": flops * i.forward_gflops / 1000 / (i.gpu_nodes * i.gpu_tflops),
        "network": fetched / i.network_mb_s,
        "JPEG CPU": looks * i.read_s / i.gpu_nodes / i.read_threads,
        "waiting for reads": looks * i.answer_s * (1 - fits) / i.gpu_nodes / i.read_threads,
    }
    ingest_h, tune_h = max(ingest.values()) / 3600, max(tune.values()) / 3600
    dollars = (
        i.price_head * (ingest_h + tune_h + i.overhead_h)
        + i.cpu_nodes * i.price_cpu * (ingest_h + i.overhead_h)
        + i.gpu_nodes * i.price_gpu * (tune_h + i.overhead_h)
    )
    hours = ({name: s / 3600 for name, s in stage.items()} for stage in (ingest, tune))
    return Cost(ingest_h, tune_h, *hours, dollars)


MILLION = {"videos": 1e6, "train_share": 0.99}
INDEXING = {  # 117 s: 29 windows of 8 s with 180 frames, counted, as they share some; forward alone
    "videos": 1e6,
    "train_share": 0,
    "epochs": 0,
    "decode_s": 1.5,  # estimated: 180 frames instead of 125 of 117 s, 2.4 ms each to resize
    "forward_gflops": 106 * 180 / 12,
    "gpu_tflops": FORWARD_BF16 * A10G_BF16,
    "read_s": 0,  # frames go from the decoder to the GPU
    "answer_s": 0,
    "shard_mb": 29 * 2128 / 1e6,  # measured: 2,128 bytes a moment
}
CASES = {  # what the tables of RESULTS.md show
    "ActivityNet, vop": {},
    "ActivityNet, vop, 64 frames": {"forward_gflops": 109 * 64 / 12, "read_s": 0.0272},
    "ActivityNet, machines half as many": {"cpu_nodes": 4, "gpu_nodes": 2},
    "a million videos, vop, bf16": MILLION,
    "a million, tf32": MILLION | {"gpu_tflops": VOP_TF32 * A10G_TF32},
    # in fp32 the H200 made 200 videos a second, 0.65 of its peak of 67 TFLOP/s: so large a share would make
    # an A10G faster in fp32 than in bf16, so it is given bf16's share of its peak, and that is the most
    "a million, fp32": MILLION | {"gpu_tflops": VOP_BF16 * A10G_FP32},
    "a million, 32 GPUs": MILLION | {"gpu_nodes": 32},
    "a million, 32 GPUs, 8 reading threads": MILLION | {"gpu_nodes": 32, "read_threads": 8},
    "a million, the same, 2 TB of cache": MILLION | {"gpu_nodes": 32, "read_threads": 8, "disk_gb": 2000},
    "a million, 64 decoding machines": MILLION | {"cpu_nodes": 64},
    "a million indexed for search": INDEXING,
    "a million indexed, 16 GPUs, 64 decoding machines": INDEXING | {"gpu_nodes": 16, "cpu_nodes": 64},
}


def main(changes: list[str]) -> None:
    known = {field.name for field in fields(Inputs)}
    given = {name: float(value) for name, value in (change.split("=") for change in changes)}
    if unknown := set(given) - known:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    cases = {"as given": {}} if given else CASES
    print(
        "| run | ingest, h | its limits, h | tune, h | its limits, h | dollars |", "|---" * 6 + "|", sep="\n"
    )
    for name, values in cases.items():
        found = cost(replace(Inputs(), **values, **given))
        stages = [(found.ingest_h, found.ingest_by), (found.tune_h, found.tune_by)]
        cells = [cell for hours, by in stages for cell in (f"{hours:.2f}", _limits(by))]
        print(f"| {' | '.join([name, *cells, f'{found.dollars:.0f}'])} |")


def _limits(hours: dict[str, float]) -> str:
    return ", ".join(f"{what} {h:.2f}" for what, h in hours.items())


if __name__ == "__main__":
    main(sys.argv[1:])
