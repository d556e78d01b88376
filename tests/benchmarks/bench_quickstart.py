"""The quickstart's methods, tuned in one process from what a quickstart has left: recall over seeds.

    python tests/benchmarks/bench_quickstart.py outputs/quickstart [seeds=0,1,2,3,4] [methods=vop,vop_p]
        [precision=fp32] [compile=true]

Takes the frozen CLIP, the shards and the captions of that folder, so nothing is decoded and neither Ray nor
MLflow is needed: what is measured is what tuning makes of them, on a GPU where there is one. A row per method
and seed: t2v R@1 of the test split and `kept`, the percent of stills that the CLIP still knows (upstream/R1),
each with its 95 % interval.
"""

import json
import sys
import time
from pathlib import Path

import torch
import without_decoder  # noqa: F401 - before vopcore, which imports PyAV

from vopcore import clip as frozen
from vopcore.config import RunConfig, read_config
from vopcore.config.sections import MethodRun
from vopcore.datasets import shapes
from vopcore.embedder import Embedder
from vopcore.methods import tune
from vopcore.metrics import Metrics, evaluate
from vopcore.retriever import Retriever
from vopcore.shards import Shards
from vopcore.training import precision
from vopcore.training.batches import TrainingBatches, stack_frames
from vopcore.training.pretrain import StillsRecall, stills_recall
from vopcore.training.trainer import Tuner

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class World:
    """What a quickstart has left in its folder."""

    def __init__(self, folder: Path) -> None:
        self.weights = next(folder.glob("tiny_clip-*.safetensors"))
        self.shards = Shards(str(next((folder / "shards").iterdir())))

        # one caption per video
        self.captions: dict[str, dict[str, str]] = {"train": {}, "test": {}}
        for line in (folder / "shapes/captions.jsonl").read_text().splitlines():
            row = json.loads(line)
            entry = self.shards.videos.get(row["video"])
            if entry is not None and entry.num_frames > 0:
                self.captions[row["split"]][row["video"]] = row["captions"][0]


def tuned_recall(
    world: World, config: RunConfig, run: MethodRun, seed: int, setting: str, compiled: bool
) -> tuple[Metrics, StillsRecall]:
    """Tune one method as a worker of `run.py` does, and measure it."""
    torch.manual_seed(seed)
    clip = frozen.load(config.clip.model, str(world.weights)).requires_grad_(False)
    tokenize = frozen.tokenizer(clip, config.clip.words)
    tune(clip, run.method, config.video.frames)
    resolved = precision.resolve(setting, DEVICE)
    retriever = Retriever(clip, run.pooling, precision=precision.apply(resolved)).to(DEVICE)

    if any(parameter.requires_grad for parameter in retriever.parameters()):
        settings = run.train.model_copy(update={"precision": resolved, "compile": compiled})
        captions = {video: [caption] for video, caption in world.captions["train"].items()}
        batches = TrainingBatches(
            world.shards,
            captions,
            tokenize,
            frames=config.video.frames,
            batch_size=settings.batch_size,
            draw=settings.captions,
            seed=seed,
            pin=DEVICE.type == "cuda",
        )
        tuner = Tuner(retriever, settings, batches.steps_per_epoch, seed=seed)
        for _ in range(settings.epochs):
            for _ in tuner.epoch(batches):
                pass

    retriever.eval()
    embedder = Embedder(retriever, tokenize)
    gallery = list(world.captions["test"])

    def read(videos: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return stack_frames(world.shards, videos, config.video.frames, [None] * len(videos))

    with torch.no_grad():
        vectors = embedder.videos(gallery, read)
        text = embedder.texts(list(world.captions["test"].values()))
        metrics = evaluate(
            lambda rows: retriever.rank(text[rows.to(DEVICE)], vectors), gallery, gallery, seed=seed
        )

    assert config.shapes is not None, "the quickstart has a world of its own"
    kept = stills_recall(
        retriever,
        lambda rng, count: shapes.stills(rng, count, config.video.side),
        shapes.still_captions(),
        tokenize,
        frames=config.video.frames,
        seed=config.shapes.seed,
    )
    return metrics, kept


def main(folder: str, *arguments: str) -> None:
    """The table."""
    options = {"seeds": "0,1,2,3,4", "methods": "vop_p", "precision": "auto", "compile": "false"}
    options |= dict(argument.split("=", 1) for argument in arguments)

    names = options["methods"].split(",")
    config = read_config("conf/quickstart.yaml", [f"compare=[{','.join(names)}]"])
    world = World(Path(folder))
    where = (
        torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{where}, torch {torch.__version__}, {options['precision']}", flush=True)
    header = ("method", "seed", "t2v R@1", "95 % interval", "kept", "95 % interval", "seconds")
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for run in config.methods:
        for seed in map(int, options["seeds"].split(",")):
            began = time.perf_counter()
            metrics, kept = tuned_recall(
                world, config, run, seed, options["precision"], options["compile"] == "true"
            )
            seconds = time.perf_counter() - began
            numbers = metrics.to_dict()
            recall = f"{numbers['t2v/R1']:.1f}"
            interval = f"{numbers['t2v/R1_low']:.1f} to {numbers['t2v/R1_high']:.1f}"
            stills = f"{kept.percent:.1f} | {kept.low:.1f} to {kept.high:.1f}"
            print(f"| {run.name} | {seed} | {recall} | {interval} | {stills} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
