"""What a thing is: every key of the project, and all that it contains.

A key that misses something its content depends on shows old results as new ones; a key that holds too much
does work twice. So they are listed here, in one place, and each has a test.

**Run** (`run_key`; `results/KEY.json`, `runs/KEY/`, the MLflow tag `run_key`).
    The method and its options, pooling, the training settings that this method reads (none for one that is
    not trained, but the precision), seed, label (`run=`), frames per video, the frozen CLIP (its name, or
    the content of its files), what is measured, the number of workers, the annotations (`data_hash`), and
    per video which decode was used (`decode_hash`); of another config's test split that is searched too its
    name and the same two. Not in it: where files lie, how often a checkpoint is written, threads per worker
    (they move sums in the last bit), and the version of the code, which only a benchmark compares.

**Search for a learning rate** (`search_key`; `searches/KEY/`).
    What a run's is, but for what is measured on the test split, which no search sees. The run's own key holds
    the search too, its bounds, trials and seed, in the place of a rate.

**Data** (`data_hash`).
    Split, video, caption, start and end of every row; not the paths, so data may be moved.

**Decode of a video** (`decode_hash`).
    Status, and times and content of the stored frames. A file that is mended or replaced is decoded anew and
    makes new runs, one of the same size too; one that was only copied, moved or touched does not.

**Shards** (`vopcore.shards.folder_name`; `shards/NAME/`).
    Sampler, stored frames, size, resize mode and interpolation, storage and quality, version of the decoder.
    Which videos are in it, and from which file, stands in the folder's own index.

**Prefix** (`vopcore.training.prefix_cache`; `prefix/NAME/`).
    The frozen blocks' weights, which layer, number format, precision, and for each video the SHA-256 of its
    shard and its row there.

**Teacher** (`tune.worker`; `teacher/NAME.safetensors`).
    The content of its tuned weights, its frozen CLIP, frames and precision, the captions, and for each video
    the SHA-256 of its shard and its row there.

**Output folder** (`shared_settings`; `benchmark.json`).
    What every row of one comparison has in common: the config's name, the settings of the frames, the frozen
    CLIP, the rendered world of the quickstart. And the data: another place with the same annotations is the
    same data that was moved.

**Rendered videos** (`quickstart.render_videos`; `DATA_ROOT/shapes.json`).
    Number of videos and twins, seed, version of the renderer.

**Pretrained small CLIP** (`tiny_clip-KEY.safetensors`).
    Its training settings, the seed, the content of its model file, version of the stills.

**Cell of a benchmark** (`vopcore.config.Cell.identity`).
    All settings of its config with one method and one seed, of `train` those that this method reads. It is
    finished if its run is: the label of the run is the round's, and that is `code_hash`, with a time after
    it where a rerun was forced.

**Code** (`experiment.provenance.code_hash`).
    The syntax trees of all modules that numbers come from, and the versions of torch, open_clip and PyAV.

**Group of cells** (`matrix.groups`; a benchmark's `OUTPUT/CONFIG/KEY/`).
    `shared_settings` and the data, as for an output folder.

**Saved model** (`vopcore.tuned_model.ModelSettings`).
    Model, weights, words, frames, stored frames, size, resize mode and interpolation, sampler, precision,
    seed where weights are drawn from it; the vectors of its gallery stand beside the weights they were made
    with.

**Index** (`vopcore.index.IndexHeader`; `index.json`).
    The folder of videos, hashes of the frozen and of the tuned weights, length and distance of the windows,
    frames of a window, pooling, resize mode and interpolation, version of the decoder, engine. A file of the
    folder is indexed anew when its size or its time changes.

**Published number** (`pipelines.reports.published`).
    Data set and split, backbone, method with its options, pooling.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import track
from pipelines.command.secrets import without_secrets
from vopcore.config import MethodRun, RunConfig, backbone, fingerprint, training_settings
from vopcore.shards import PLAIN_PREPROCESSING, Shards


def run_key(
    config: RunConfig,
    run: MethodRun,
    data: str,
    shards: str,
    decode: str,
    others: Sequence[tuple[str, str, str]] = (),
) -> str:
    """`METHOD-sSEED[-LABEL]-HASH`, the name of a run: the same key continues it or shows it again.

    data: `data_hash`; shards: the folder of shards; decode: `decode_hash`; others: name, `data_hash` and
    `decode_hash` of each config in `evaluate.also`.
    """
    content = _tuning(config, run, data, shards, decode)
    content["evaluate"] = config.evaluate.model_dump(exclude={"each_epoch", "also"})
    if others:
        content["also"] = list(others)
    # the label is there for people; what tells two labels apart is in the hash
    label = re.sub(r"[^\w.+=-]", "_", config.run)
    middle = f"-{label}" if label else ""
    return f"{run.name}-s{config.seed}{middle}-{fingerprint(content)}"


def search_key(
    config: RunConfig,
    run: MethodRun,
    data: str,
    shards: str,
    decode: str,
) -> str:
    """`METHOD-sSEED-HASH`, the name of the search for a run's learning rate; the arguments of `run_key`."""
    content = _tuning(config, run, data, shards, decode)
    return f"{run.name}-s{config.seed}-{fingerprint(content)}"


def _tuning(
    config: RunConfig,
    run: MethodRun,
    data: str,
    shards: str,
    decode: str,
) -> dict[str, Any]:
    """All that decides what tuning comes to."""
    return {
        "method": asdict(run.method),
        "run": run.model_dump(exclude={"method", "train"} | ({"merge"} if not run.merge else set())),
        "train": training_settings(run),
        "seed": config.seed,
        "label": config.run,
        "frames": config.video.frames,
        "clip": backbone(config.clip),
        "workers": (config.resources.workers, config.resources.max_workers),
        "shards": Path(shards.partition("?")[0]).name,  # without the options of a URI
        "data": data,
        "decode": decode,
    }


def data_hash(annotations: pa.Table) -> str:
    """Eight characters that change with any caption, split or moment, not with where the files are."""
    return fingerprint(annotations.drop_columns("path").to_pydict())


def decode_hash(shards: Shards, videos: Collection[str]) -> str:
    """Sixteen characters that change when one of `videos` is decoded to other frames."""
    return shards.digest(list(videos))


def shared_settings(config: RunConfig) -> dict[str, Any]:
    """What decides the frames and the backbone of a run, flat; the data itself is `data_hash`."""
    video_keys = {"frames", "stored_frames", "size", "sampler", "storage", "quality"}
    # OpenAI's preprocessing has no name, as in the name of the shards: folders of before stay theirs
    if (config.video.resize, config.video.interpolation) != PLAIN_PREPROCESSING:
        video_keys |= {"resize", "interpolation"}
    include: Any = {"name": True, "shapes": True, "data": {"dataset", "holdout"}, "video": video_keys}
    settings = config.model_dump(mode="json", include=include, exclude_none=True)
    # a run sees one size, whatever others are stored beside it
    settings["video"]["size"] = config.video.side
    settings["clip"] = backbone(config.clip)
    return without_secrets(track.flat(settings))
