"""Does vopcore compute on CUDA what it computes on a CPU, and how fast? At most 9 minutes on a bare machine.

    python tests/benchmarks/gpu_check.py [tiny] [bf16] [PART ...]

Parts: outputs training resume speed kernels loader backbones; all, if none is named. tiny: a small CLIP, also
without a GPU. bf16: no speed of other precisions. A line per check, `FAIL` where one fails (exit code 1);
kept in $OUT/gpu_check.txt. Needs torch, numpy, pyarrow, safetensors, open_clip_torch, simplejpeg, omegaconf
and pydantic: nothing is decoded, so PyAV may be missing.
"""

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import without_decoder  # noqa: F401 - before vopcore, which imports PyAV
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vopcore.clip import blank, share, text_settings, tokenizer, towers
from vopcore.config import Train
from vopcore.methods import METHODS, tune
from vopcore.retriever import Retriever
from vopcore.shards import Entry, Layout, Shards, write_shard
from vopcore.storage import Store
from vopcore.training import memory, precision
from vopcore.training import prefix_cache as prefix
from vopcore.training.batches import Batch, TrainingBatches
from vopcore.training.trainer import Tuner
from vopcore.training.transfer import moved_to

CUDA = torch.cuda.is_available()
CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if CUDA else "cpu")
SECONDS = 480  # after which no further part is begun
LINES: list[str] = []
FEWER = {f"vop_{kind}": {"spatial_layers": 2} for kind in ("f", "fp", "fc")}  # layers, for the small CLIP
FEWER |= {"maple": {"depth": 3}, "coop": {"prompts": 8}}
BACKBONES = ("ViT-L-14-quickgelu", "ViT-B-16-SigLIP2", "PE-Core-B-16", "MobileCLIP2-B")
SPEED_METHODS = ("full", "vop", "vop_fc", "cross_modal_adapter", "proj")


def say(line: str, ok: bool = True) -> None:
    """Print and keep a line."""
    LINES.append(line if ok else f"FAIL {line}")
    print(LINES[-1], flush=True)


def distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||; NaN is below no bound."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


class World:
    """The frozen CLIP, on the CPU, and what the checks make of it."""

    def __init__(self, tiny: bool, folder: Path, model: str = "ViT-B-32-quickgelu") -> None:
        self.tiny = tiny
        self.folder = folder
        self.frames = 4 if tiny else 12
        torch.manual_seed(0)
        self.clip = blank("conf/tiny_clip.json" if tiny else model)
        self.size = towers(self.clip).vision.image_size[0]
        self.words = min(self.clip.context_length, 16 if tiny else 32)
        self.vocabulary = text_settings(self.clip)["vocab_size"]

    def retriever(
        self, name: str, device: torch.device, pooling: str, setting: str, **options: object
    ) -> Retriever:
        """A method whose new parameters are not zero, which would hide mistakes."""
        torch.manual_seed(0)
        if self.tiny:
            options = FEWER.get(name, {}) | options
        clip = tune(share(self.clip), METHODS[name](**options), self.frames)
        for parameter in clip.parameters():
            if parameter.requires_grad and name != "full":
                parameter.data += 0.01 * torch.randn_like(parameter)
        return Retriever(clip, pooling, precision=precision.apply(setting)).to(device)

    def tuner(
        self, name: str, setting: str = "fp32", options: dict | None = None, steps: int = 2, **train: object
    ) -> Tuner:
        """Ready to train on the GPU."""
        one = self.retriever(name, DEVICE, "mean", setting, **(options or {}))
        defaults = {"epochs": 100, "warmup": 0, "lr": 1e-3, "weight_decay": 0, "precision": setting}
        tuner = Tuner(one, Train(**defaults | train), steps, seed=0)
        tuner.model.train()
        return tuner

    def batch(self, videos: int, short: bool = False) -> Batch:
        """Random frames and words; `short`: the first video has one frame."""
        frames = torch.randint(256, (videos, self.frames, self.size, self.size, 3), dtype=torch.uint8)
        last = self.vocabulary - 1  # where OpenAI's texts end, they have their highest token
        tokens = torch.randint(1, last - 1, (videos, self.words))
        tokens[:, 0] = last - 1
        tokens[:, 12] = last
        tokens[:, 13:] = 0
        mask = torch.ones(videos, self.frames, dtype=torch.bool)
        mask[0, 1:] = not short
        if CUDA:
            frames = frames.pin_memory()
        names = [f"v{number}" for number in range(videos)]
        return Batch(names, frames.movedim(-1, -3), mask, tokens)

    def shards(self, videos: int, storage: str = "raw") -> Shards:
        """Smooth random videos, which compress about as photographs do."""
        coarse = torch.randint(256, (self.frames, 3, 28, 28)).float()
        smooth = torch.nn.functional.interpolate(coarse, size=(self.size, self.size), mode="bicubic")
        pixels = smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        shades = np.random.default_rng(0).integers(0, 192, (videos, 3), np.uint8)  # each has a colour

        rows = []
        for number in range(videos):
            times = [0.0] * self.frames
            entry = Entry(video=f"v{number}", status="ok", num_frames=self.frames, times=times)
            rows.append((entry, np.roll(pixels, number, 1) // 4 + shades[number]))
        folder = self.folder / f"{storage}{videos}"
        write_shard(Store(str(folder)), 0, Layout(self.size, storage), rows)
        return Shards(str(folder))

    def batches(
        self, source: Shards | prefix.Prefix, shards: Shards, size: int, augment: bool = False
    ) -> TrainingBatches:
        """Every video with a caption of its own."""
        captions = {video: [f"number {i} of many"] for i, video in enumerate(shards.videos)}
        return TrainingBatches(
            source,
            captions,
            tokenizer(self.clip, words=self.words),
            frames=self.frames,
            batch_size=size,
            draw="one",
            seed=0,
            augment=augment,
            pin=CUDA,
        )


def outputs(world: World) -> None:
    """Features and gradients of each method on CUDA against those of a CPU; one video is short.

    bf16 may be as far from fp32 as it is on a CPU, twice that at most, and similarities, which are few and of
    which some are near zero, a little more.
    """
    batch = world.batch(3, short=True)
    for name in METHODS:
        # What pooling adds is the same for every method.
        poolings = ("mean", "query_aware") if name in ("zero_shot", "vop") else ("mean",)
        for pooling in poolings:
            exact = results(world.retriever(name, CPU, pooling, "fp32"), batch)
            rounded = results(world.retriever(name, CPU, pooling, "bf16"), batch)
            usual = distances(rounded, exact)

            far = distances(results(world.retriever(name, DEVICE, pooling, "fp32"), batch), exact)
            ok = max(far[0] / 2, *far[1:3]) < 1e-4 and far[3] < 1e-4
            say(f"outputs {name} {pooling} fp32: {told(far)}", ok)

            far = distances(results(world.retriever(name, DEVICE, pooling, "bf16"), batch), exact)
            most = [3 * usual[0] + 1e-2, *(2 * there + 1e-3 for there in usual[1:])]
            ok = all(here < limit for here, limit in zip(far, most, strict=True))
            say(f"outputs {name} {pooling} bf16: {told(far)} (on a CPU {told(usual)})", ok)


def distances(seen: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of similarities, text and video features; for gradients what their cosine lacks of 1."""
    *features, gradient = seen
    far = [distance(a, b) for a, b in zip(features, exact, strict=False)]
    alike = 1.0
    if len(gradient):
        alike = float(torch.cosine_similarity(gradient, exact[-1], 0))
    return [*far, 1 - alike]


def told(far: list[float]) -> str:
    """`distances` in words."""
    return "eval {:.1e}, text {:.1e}, video {:.1e}, 1 - cosine of gradients {:.1e}".format(*far)


def results(one: Retriever, batch: Batch) -> list[Tensor]:
    """Similarities in eval mode, features in training, all gradients in a row; on the CPU."""
    device = one.mean.device
    frames = batch.frames.to(device)
    mask = batch.mask.to(device)
    tokens = batch.tokens.to(device)

    with torch.no_grad():
        one.eval()
        plain = one.similarity(one.text(tokens), one.video(frames, mask), mask)
    text, video = one.train()(frames, mask, tokens)
    loss = 10 * one.similarity(text, video, mask)
    if loss.requires_grad:
        (loss.logsumexp(1) - loss.diagonal()).sum().backward()
    gradients = [p.grad.flatten().cpu().double() for p in one.parameters() if p.grad is not None]
    gradient = torch.cat(gradients) if gradients else torch.zeros(0)
    return [plain.cpu(), text.detach().cpu(), (video.detach() * mask.unsqueeze(-1)).cpu(), gradient]


def training(world: World) -> None:
    """It learns; neither parts, recomputation nor a prefix change a gradient."""
    shards = world.shards(32)
    learns(World(True, world.folder / "small"))

    batch = world.batch(6, short=True)
    parts = {"micro_batch": 4}
    cases = [("vop", {}, {}), ("vop_fc", {}, {}), ("full", {}, {})]
    cases.append(("cross_modal_adapter", parts, {"dropout": 0.1}))
    for name, base, options in cases:
        ways = ({}, parts, {"grad_checkpointing": True})
        slopes = [gradient_of(world.tuner(name, options=options, **base | way), batch) for way in ways]
        far = [distance(slope, slopes[0]) for slope in slopes[1:]]
        line = f"in parts {far[0]:.1e}, recomputed {far[1]:.1e} away"
        say(f"gradients {name}: {line}", max(far) < 1e-4)

    for name, kept, most in (("proj", "fp32", 1e-4), ("partial", "fp32", 1e-4), ("partial", "bf16", 2e-2)):
        one = world.tuner(name).retriever
        plan = prefix.plan(one, shards, sorted(shards.videos), kept, str(world.folder / name))
        prefix.write(plan, plan.missing(), one, shards)
        sources = (shards, prefix.Prefix(plan))
        batches = [next(world.batches(source, shards, 8).epoch(0)) for source in sources]
        slopes = [gradient_of(world.tuner(name), both) for both in batches]
        far = distance(slopes[1], slopes[0])
        say(f"prefix {name} {kept}: gradients {far:.1e} away", far < most)


def learns(small: World) -> None:
    """The loss of eight videos falls to half."""
    eight = small.shards(8)
    cases = (("full", "fp32", 3e-3), ("full", "bf16", 3e-3), ("vop_fc", "bf16", 1e-2))
    for name, setting, lr in cases:
        tuner = small.tuner(name, setting, lr=lr, epochs=30)
        batches = small.batches(eight, eight, 4)
        losses = []
        for _ in range(30):
            losses += [step.loss for step in tuner.epoch(batches)]
        line = f"loss {losses[1]:.3f} -> {losses[-1]:.3f}"
        say(f"learns {name} {setting}: {line}", losses[-1] < 0.5 * losses[1])


def resume(world: World) -> None:
    """A run that was resumed ends where an undisturbed one does, with as few synchronisations."""
    shards = world.shards(32)
    for name in ("vop", "vop_fc", "cross_modal_adapter", "full"):
        first = continued(world, shards, name, resumed=False)
        again = continued(world, shards, name, resumed=False)
        resumed = continued(world, shards, name, resumed=True)
        apart = distance(again[0], first[0])
        far = distance(resumed[0], first[0])
        line = f"a second run {apart:.1e}, a resumed one {far:.1e} away"
        line += f"; syncs per step {first[1]:.0f}, once resumed {resumed[1]:.0f}"
        say(f"resume {name}: {line}", far <= 2 * apart)


def continued(world: World, shards: Shards, name: str, resumed: bool) -> tuple[Tensor, float]:
    """The tuned tensors after two epochs, the second perhaps by another tuner; its syncs per step."""
    batches = world.batches(shards, shards, 16, augment=True)
    tuner = world.tuner(name, "bf16")
    list(tuner.epoch(batches))
    if resumed:
        state = world.folder / "state.pt"
        tuner.save(state)
        tuner = world.tuner(name, "bf16")
        tuner.load(state)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if CUDA:
            torch.cuda.set_sync_debug_mode("warn")
        list(tuner.epoch(batches))
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")
    syncs = sum("synchroniz" in str(warning.message).lower() for warning in caught)
    tensors = [p.detach().flatten().cpu() for p in tuner.tuned.values()]
    return torch.cat(tensors), syncs / 2


def gradient_of(tuner: Tuner, batch: Batch) -> Tensor:
    """Of one step, in a row."""
    tuner.step(batch)
    return torch.cat([p.grad.flatten().cpu() for p in tuner.tuned.values()])


def speed(world: World) -> None:
    """A step's time, memory and its estimate, videos a second, and the share of the card's own bf16 rate."""
    peak = card_rate()
    say(f"card: {peak / 1e12:.0f} TFLOP/s in bf16 products")
    whole: dict[tuple[str, int, bool], float] = {}
    for setting in ("bf16",) if "bf16" in sys.argv else ("bf16", "tf32", "fp32"):
        for size in (2, 4) if world.tiny else (32, 128):
            for name in SPEED_METHODS[: 2 if setting == "fp32" else 5]:
                measure_speed(world, name, setting, size, False, peak, whole)
    for name in SPEED_METHODS[:3] if CUDA else ():  # compiling takes a minute each
        measure_speed(world, name, "bf16", 32, True, peak, whole)


def measure_speed(
    world: World,
    name: str,
    setting: str,
    size: int,
    compiled: bool,
    peak: float,
    whole: dict,
    model: str = "",
) -> None:
    """One line."""
    tuner = world.tuner(name, setting, compile=compiled)
    batch = world.batch(size)
    on_device = moved_to(batch, tuner.retriever.clip, DEVICE) if CUDA else batch
    estimated = memory.estimate(tuner.retriever, on_device).bytes(size) / 2**30
    with FlopCounterMode(display=False) as counted:
        world.tuner(name, setting).step(batch)

    seconds, used = clock(tuner, on_device)
    ratio = seconds / whole.setdefault((setting, size, compiled), seconds)
    share_of_peak = counted.get_total_flops() / seconds / peak
    line = f"{1000 * seconds:.1f} ms, {ratio:.2f} of full, {size / seconds:.0f} videos/s"
    line += (
        f", {used:.1f} GiB (estimated {estimated:.1f}), {100 * share_of_peak:.0f} % of the card's bf16 rate"
    )
    say(f"speed {model}{name} {setting} batch {size}{' compiled' * compiled}: {line}")


def card_rate() -> float:
    """FLOP/s of large products in bf16."""
    size = 8192 if CUDA else 512
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)

    def work() -> None:
        for _ in range(10):
            product = a @ a
        product[0, 0].item()

    return 10 * 2 * size**3 / min(timed(work, 5))


def timed(work: Callable[[], object], times: int) -> list[float]:
    """Seconds of each; `work` waits for the GPU, as a step does, which ends with the loss on the CPU."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds


def clock(tuner: Tuner, batch: Batch) -> tuple[float, float]:
    """Median seconds of 5 steps after 2, and the most GiB in use."""
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(lambda: tuner.step(batch), 7)
    used = torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0
    return float(np.median(seconds[2:])), used


def kernels(world: World) -> None:
    """What a step of vop in bf16 is made of, and what would make it shorter."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tuner = world.tuner("vop", "bf16")
    batch = world.batch(4 if world.tiny else 32)
    seconds, _ = clock(tuner, batch)
    with torch.profiler.profile() as seen:
        tuner.step(batch)
    table = seen.key_averages().table(
        sort_by=f"self_{DEVICE.type}_time_total", row_limit=15, max_name_column_width=60
    )
    say(table)
    busy = [e.device_time for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    say(f"kernels: {len(busy)}, together {sum(busy) / 1e3:.1f} ms, in a step of {1000 * seconds:.1f} ms")

    ways = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    for videos in (4,) if world.tiny else (32, 128):
        batch = world.batch(videos)
        for way, backend in ways.items():
            with sdpa_kernel([backend, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
                milliseconds = 1000 * clock(tuner, batch)[0]
            say(f"kernels: {milliseconds:.1f} ms with {way}'s attention, batch {videos}")


def loader(world: World) -> None:
    """Videos a second that are read (and pinned), and that vop in bf16 is trained with."""
    for storage, threads in (("raw", 2), ("raw", 8), ("jpeg", 2), ("jpeg", 8)):
        torch.set_num_threads(threads)
        shards = world.shards(16 if world.tiny else 512, storage)
        batches = world.batches(shards, shards, 4 if world.tiny else 32, augment=True)
        read = min(timed(lambda: list(batches.epoch(0)), 2))  # noqa: B023 - called at once

        tuner = world.tuner("vop", "bf16", steps=batches.steps_per_epoch)
        steps = [*tuner.epoch(batches), *tuner.epoch(batches)][batches.steps_per_epoch :]
        waited = sum(step.wait for step in steps)
        took = sum(step.wait + step.seconds for step in steps)
        line = f"{len(shards.videos) / read:.0f} videos/s read, {len(shards.videos) / took:.0f} trained"
        say(f"loader {storage}, {threads} threads: {line}, {100 * waited / took:.0f} % of the time waiting")


def backbones(world: World) -> None:
    """Steps on CLIPs that people use today, relative to full fine-tuning of the same."""
    peak = card_rate()
    for model in () if world.tiny else BACKBONES:
        other = World(False, world.folder, model)
        whole: dict[tuple[str, int, bool], float] = {}
        for name in ("full", "vop", "cross_modal_adapter"):
            measure_speed(other, name, "bf16", 32, False, peak, whole, f"{model} ")


PARTS = {
    "outputs": outputs,
    "training": training,
    "resume": resume,
    "speed": speed,
    "kernels": kernels,
    "loader": loader,
    "backbones": backbones,
}


def main(arguments: list[str]) -> int:
    """Run the parts that are named; the exit code."""
    tiny = "tiny" in arguments
    began = time.perf_counter()
    parts = [part for part in arguments if part not in ("tiny", "bf16")] or list(PARTS)
    say(f"torch {torch.__version__}, {torch.cuda.get_device_name() if CUDA else 'no GPU'}", ok=CUDA or tiny)
    with tempfile.TemporaryDirectory() as folder:
        world = World(tiny, Path(folder))
        for part in parts if CUDA or tiny else ():
            try:
                if time.perf_counter() - began > SECONDS:
                    raise TimeoutError("left out, the time is up")
                PARTS[part](world)
            except Exception as error:  # the other parts still tell something
                say(f"{part}: {type(error).__name__}: {error}", ok=False)
            say(f"-- {part}, {time.perf_counter() - began:.0f} s so far")
            Path(os.environ.get("OUT", "."), "gpu_check.txt").write_text("\n".join(LINES) + "\n")
    return int(any(line.startswith("FAIL") for line in LINES))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
