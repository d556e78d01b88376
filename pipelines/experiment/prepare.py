"""Before any work: the output folder is ours, the annotations are read, the quickstart's world exists."""

import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import save_file

from pipelines import track
from pipelines.command.progress import Bar
from pipelines.command.secrets import without_secrets
from vopcore import clip as clips
from vopcore.config import ConfigError, RunConfig, backbone, fingerprint
from vopcore.datasets import DATASETS, layout, problems, shapes
from vopcore.methods import tune
from vopcore.shards import Shards
from vopcore.training.pretrain import train_on_stills

MADE = ("shards", "runs", "results")  # what a benchmark leaves in `output`
BENCHMARK = "benchmark.json"  # in `output`: what its runs share


def check_model(config: RunConfig) -> None:
    """Refuse, before anything is written, what does not fit the model; builds it without weights."""
    model = config.clip.model
    with torch.device("meta"):
        size = clips.blank(model).visual.image_size[0]
    if config.video.size != size:
        raise ConfigError(f"video.size: {config.video.size}, but {model} sees {size} x {size} pixels")
    try:
        clips.tokenizer(model, config.clip.words)
    except ValueError as error:
        raise ConfigError(f"clip.{error}") from None
    if config.clip.pretrained is None and config.shapes is None:
        print(f"  clip.pretrained is null: {model} has random weights", file=sys.stderr)
    for run in config.methods:
        try:
            with torch.device("meta"):
                clip = tune(clips.blank(model), run.method, config.video.frames)
        except ValueError as error:
            raise ConfigError(f"methods.{run.name}.{error}") from None
        if run.train.prefix_cache and clips.first_tuned_layer(clip) == 0:
            print(
                f"  {run.name} tunes the first vision block: train.prefix_cache has no use", file=sys.stderr
            )


def check_output(config: RunConfig) -> None:
    """Refuse an output folder that holds something of another benchmark.

    What every row of a comparison shares decides: data, frames and backbone. Methods, training settings
    and seeds may differ; each of those has a run of its own.
    """
    folder = Path(config.output)
    said = folder / BENCHMARK
    if not said.is_file():
        return
    before = json.loads(said.read_text())
    makes_more = "storage" in before or config.shapes is not None  # elsewhere, or clips and a CLIP
    if not makes_more and not any((folder / made).exists() for made in MADE):
        return
    for key, now in shared(config).items():
        if before.get(key) != now:
            raise ConfigError(
                f"output: {config.output} belongs to another config ({key} is {_short(before.get(key))}, now"
                f" {_short(now)}); set output=... to a new folder, or delete that one"
            )


def claim_output(config: RunConfig, annotations: pa.Table) -> None:
    """Make `output` this benchmark's folder, and list there the videos that have no file."""
    folder = Path(config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        elsewhere = {"storage": without_secrets(config.storage)} if config.storage else {}
        (folder / BENCHMARK).write_text(json.dumps(shared(config) | elsewhere, indent=1))
    except OSError as error:
        raise ConfigError(f"output: cannot write to {folder}: {error.strerror}") from None
    missing = sorted(set(annotations.filter(pc.is_null(annotations["path"]))["video"].to_pylist()))
    (folder / "missing.txt").write_text("".join(f"{video}\n" for video in missing))
    if missing:
        print(f"  {len(missing)} videos of the annotations have no file: listed in {folder}/missing.txt")


def check_store(config: RunConfig) -> None:
    """Refuse, before hours of work, an MLflow store that cannot be used; a server may be away."""
    if "tune" in config.stages:
        with suppress(track.ServerAwayError):
            track.open_store(config.mlflow.uri, config.mlflow.experiment or config.name, Path(config.output))


def shared(config: RunConfig) -> dict[str, Any]:
    """What decides the frames and the backbone of a run, flat."""
    video = {"frames", "stored_frames", "size", "sampler", "storage", "quality"}
    include = {"name": True, "shapes": True, "data": True, "video": video}
    said = config.model_dump(mode="json", include=include, exclude_none=True)
    return without_secrets(track.flat(said | {"clip": backbone(config.clip)}))


def _short(section: object) -> str:
    return json.dumps(section).replace('"', "")[:150]


def quickstart_world(config: RunConfig) -> None:
    """Render the clips that `shapes` describes, unless they are there or the config has no `shapes`."""
    world, root = config.shapes, Path(config.data.root)
    if world is not None and not (root / "captions.jsonl").is_file():
        with Bar("render", world.clips + 2 * world.twins, "clips") as bar:
            for done, _ in enumerate(shapes.render(root, world.clips, world.twins, world.seed), 1):
                bar.show(done)


def with_upstream(config: RunConfig) -> RunConfig:
    """With `shapes`: train its small CLIP on stills, unless it is there, and name its weights."""
    if config.shapes is None:
        return config
    settings = config.shapes.upstream
    key = fingerprint([settings.model_dump(), config.shapes.seed, backbone(config.clip)])
    weights = Path(config.output) / f"tiny_clip-{key}.safetensors"
    if not weights.is_file():
        _train_upstream(config, weights)
    return config.model_copy(update={"clip": config.clip.model_copy(update={"pretrained": str(weights)})})


def _train_upstream(config: RunConfig, weights: Path) -> None:
    settings = config.shapes.upstream
    torch.manual_seed(config.shapes.seed)
    clip = clips.load(config.clip.model, None)
    size = clip.visual.image_size[0]
    tokenize = clips.tokenizer(clip, config.clip.words)
    with Bar("train the small CLIP on stills", settings.steps, "steps") as bar:
        losses = train_on_stills(
            clip,
            lambda rng, count: shapes.stills(rng, count, size),
            tokenize,
            **settings.model_dump(),
            seed=config.shapes.seed,
        )
        for done, loss in enumerate(losses, 1):
            bar.show(done, f"loss {loss:.3f}")
    partial = weights.with_suffix(".part")
    save_file(clip.state_dict(), partial)
    partial.rename(weights)


def annotations(config: RunConfig) -> pa.Table:
    """Read the data set, say what was found, and refuse what cannot be run."""
    root = Path(config.data.root)
    table = hold_out(DATASETS[config.data.dataset](root, config.data.videos or root), config.data.holdout)
    videos = {split: set() for split in ("train", "val", "test")}
    captions = Counter(table["split"].to_pylist())
    missing = set()
    for split, video, path in zip(*(table[c].to_pylist() for c in ("split", "video", "path")), strict=True):
        videos[split].add(video)
        if path is None:
            missing.add(video)
    counts = ", ".join(
        f"{split} {len(videos[split]):,} videos / {captions[split]:,} captions"
        for split in videos
        if videos[split]
    )
    print(f"{config.data.dataset} ({layout(table)}): {counts}")
    for problem in problems(table)[:5]:
        print(f"  {problem}")
    if len(problems(table)) > 5:
        print(f"  and {len(problems(table)) - 5} more problems")
    if not videos["test"]:
        raise ConfigError(f"{config.data.root}: no caption of the test split, so nothing can be measured")
    if not videos["val"] and any(not isinstance(run.train.lr, float) for run in config.methods):
        raise ConfigError(
            "train.lr: a search over learning rates needs a val split, and there is none; data.holdout=5%"
            " keeps a share of the training videos apart"
        )
    if len(missing) == sum(map(len, videos.values())):
        raise ConfigError(
            f"{config.data.videos or root}: none of the {len(missing)} videos of the annotations is there"
        )
    if "tune" in config.stages:
        _check_batch_sizes(config, len(videos["train"]))
    return table


def check_decoded(config: RunConfig, annotations: pa.Table, shards: Shards) -> None:
    """Refuse to start what would only fail at its end: a test split without a video, a batch too large."""
    decoded = [video for video, entry in shards.videos.items() if entry.num_frames]
    left = annotations.filter(pc.is_in(annotations["video"], pa.array(decoded, pa.string())))
    videos = {split: set() for split in ("train", "test")}
    for split, video in zip(left["split"].to_pylist(), left["video"].to_pylist(), strict=True):
        videos.setdefault(split, set()).add(video)
    if not videos["test"]:
        raise ConfigError(f"{config.data.root}: no video of the test split can be decoded")
    _check_batch_sizes(config, len(videos["train"]))


def _check_batch_sizes(config: RunConfig, num_videos: int) -> None:
    for run in config.methods:
        trains = run.train.epochs and run.name != "zero_shot" and not run.train.repeat_videos
        if trains and num_videos < run.train.batch_size:
            raise ConfigError(
                f"methods.{run.name}.train.batch_size: {run.train.batch_size} is more than the {num_videos}"
                " videos there are to train on"
            )


def hold_out(table: pa.Table, share: float) -> pa.Table:
    """Call a fixed `share` of the training videos `val`; refuses a data set that has a val split."""
    if not share:
        return table
    splits, videos = table["split"].to_pylist(), table["video"].to_pylist()
    if "val" in splits:
        raise ConfigError("data.holdout: the data set has a val split of its own; leave this out")
    train = sorted({video for split, video in zip(splits, videos, strict=True) if split == "train"})
    held = set(np.random.default_rng(0).permutation(train)[: round(share * len(train))].tolist())
    changed = ["val" if s == "train" and v in held else s for s, v in zip(splits, videos, strict=True)]
    column = table.schema.get_field_index("split")
    return table.set_column(column, table.schema.field(column), pa.array(changed))
