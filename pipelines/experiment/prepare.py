"""From a config to decoded videos, the same for `run.py` and for each group of cells of a benchmark.

check(config)          refuses what the config alone tells; nothing is written
prepared(config)       videos and small CLIP of a quickstart, annotations, the claimed output folder
decoded(preparation)   all videos in shards, and what may be tuned on them; wants a Ray
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines import track
from pipelines.cluster import machines
from pipelines.command.exit_codes import CommandFailedError
from pipelines.command.secrets import without_secrets
from pipelines.experiment import quickstart
from pipelines.experiment.annotations import annotations, test_rows, usable
from pipelines.experiment.identity import data_hash, decode_hash, shared_settings
from pipelines.experiment.teachers import fetch_teachers
from pipelines.ingest.driver import ingest
from pipelines.tune.worker import OtherSplit, TeacherRun
from vopcore.clip import blank, first_tuned_layer, tokenizer, towers
from vopcore.config import ConfigEntry, ConfigError, MethodRun, RunConfig, read_others
from vopcore.config.sections import Data
from vopcore.methods import tune
from vopcore.shards import Shards, verify
from vopcore.storage import Store, below, sweep, writer_lock

RESULTS = ("shards", "runs", "results")  # what an experiment leaves in `output`
BENCHMARK = "benchmark.json"  # in `output`: what its runs share


@dataclass(frozen=True)
class OtherTest:
    """The test split of a config in `evaluate.also`. entry: what is said of it there."""

    entry: ConfigEntry
    config: RunConfig
    annotations: pa.Table


@dataclass(frozen=True)
class Preparation:
    """A config that can be run. config: with the weights of the small CLIP, where it has one."""

    config: RunConfig
    annotations: pa.Table
    others: Sequence[OtherTest] = ()
    teachers: Mapping[str, TeacherRun] = field(default_factory=dict)


@dataclass(frozen=True)
class DecodedData:
    """What there is to tune on.

    annotations: the rows to tune and measure with; shards: their folder, a path or URI; the hashes of both
    read every row, so they are taken once. others: the test splits of other configs, decoded as this one's.
    teachers: what `train.distill.teacher` names, by that name.
    """

    config: RunConfig
    annotations: pa.Table
    shards: str
    data_hash: str
    decode_hash: str
    others: Sequence[OtherSplit] = ()
    teachers: Mapping[str, TeacherRun] = field(default_factory=dict)


class DamagedShardsError(CommandFailedError):
    """Shards differ from their manifest; the message names each."""


def check(config: RunConfig) -> None:
    """Refuse, before anything is written, what the config alone tells. Raises ConfigError."""
    check_model(config)
    machines.check_places(config)
    read_others(config)
    check_output(config)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only command that writes to an output folder, as long as the block runs.

    What killed commands have left half written there goes. Raises ConfigError where the folder cannot be
    made, LockedError where another command writes there. A folder that was made for this and stays empty is
    removed.
    """
    is_new = not folder.exists()
    try:
        with writer_lock(folder):
            for place in (folder, folder / "results"):
                sweep(place)
            yield
    except PermissionError as error:
        raise ConfigError(f"output: cannot write to {folder}: {error.strerror}") from None
    finally:
        if is_new:
            with suppress(OSError):  # it holds something now
                folder.rmdir()


def prepared(config: RunConfig) -> Preparation:
    """Make or read what must be there before anything is decoded, and claim the output folder."""
    quickstart.render_videos(config)
    table = annotations(config)
    others = _other_tests(config)
    claim_output(config, table)
    check_store(config)
    teachers = fetch_teachers(config, data_hash(table))
    return Preparation(quickstart.with_small_clip(config), table, others, teachers)


def _other_tests(config: RunConfig) -> list[OtherTest]:
    """The test splits that `evaluate.also` names. Raises ConfigError where one cannot be searched."""
    tests = []
    for entry, other in zip(config.evaluate.also, read_others(config), strict=True):
        quickstart.render_videos(other)
        tests.append(OtherTest(entry, other, test_rows(other)))
    return tests


def decoded(preparation: Preparation) -> DecodedData:
    """Decode what is not in the shards yet, and verify them where the config says so."""
    config = preparation.config
    folder = _decode(config, preparation.annotations, config.data, "shards")
    if "verify" in config.stages:
        _verify(folder)

    shards = Shards(folder)
    with_frames = shards.decoded().to_pylist()
    table = preparation.annotations
    if "tune" in config.stages:
        table = usable(config, table, with_frames)

    videos = table["video"].unique().to_pylist()
    others = [_decoded_other(config, other) for other in preparation.others]
    return DecodedData(
        config,
        table,
        folder,
        data_hash(table),
        decode_hash(shards, videos),
        others,
        preparation.teachers,
    )


def _decoded_other(config: RunConfig, other: OtherTest) -> OtherSplit:
    """Another config's test split, with the frames of `config`: all it is compared with sees as many."""
    name = other.config.name
    print(f"{name}, to be searched too:")
    # in a folder of its own, as two data sets may have a video of the same name
    folder = _decode(config, other.annotations, other.config.data, f"also/{name}")

    videos = other.annotations["video"].unique().to_pylist()
    hashes = (data_hash(other.annotations), decode_hash(Shards(folder), videos))
    return OtherSplit(name, other.entry, other.annotations, folder, *hashes)


def check_model(config: RunConfig) -> None:
    """Refuse what does not fit the model; builds it without weights."""
    model = config.clip.model
    try:
        with torch.device("meta"):
            size = towers(blank(model)).vision.image_size[0]
    except ValueError as error:
        raise ConfigError(f"clip.model: {error}") from None
    if config.video.side != size:
        stored = " and ".join(str(stored) for stored in config.video.sizes)
        raise ConfigError(f"video.size: {stored}, but {model} sees {size} x {size} pixels")

    try:
        tokenizer(model, config.clip.context)
    except ValueError as error:
        raise ConfigError(f"clip.{error}") from None

    if config.clip.pretrained is None and config.shapes is None:
        print(f"  clip.pretrained is null: {model} has random weights", file=sys.stderr)
    for run in config.methods:
        _check_method(config, run)


def _check_method(config: RunConfig, run: MethodRun) -> None:
    try:
        with torch.device("meta"):
            clip = tune(blank(config.clip.model), run.method, config.video.frames, run.merge)
    except ValueError as error:
        raise ConfigError(f"methods.{run.name}.{error}") from None

    if run.train.prefix_cache and first_tuned_layer(clip) == 0:
        print(f"  {run.name} tunes the first vision block: train.prefix_cache has no use", file=sys.stderr)


def check_output(config: RunConfig) -> None:
    """Refuse an output folder that holds results of another comparison.

    What every row of a comparison shares decides: frames and backbone. Methods, training settings and seeds
    may differ; each of those has a run of its own. The data is compared once it is read, by `claim_output`.
    """
    before = _results_in(config)
    for key, now in shared_settings(config).items():
        if before and before.get(key) != now:
            raise _taken(config, key, before.get(key), now)


def claim_output(config: RunConfig, annotations: pa.Table) -> None:
    """Make `output` this comparison's folder, and list there the videos that have no file.

    Raises ConfigError where it holds results of other data: other annotations at another place. The same
    ones at another place were moved, and others at the same place were edited; neither is refused.
    """
    folder = Path(config.output)
    data = {"data.root": config.data.root, "data_hash": data_hash(annotations)}
    before = _results_in(config)
    if before and not any(before.get(key) == value for key, value in data.items()):
        raise _taken(config, "data.root", before.get("data.root"), config.data.root)

    elsewhere = {"storage": without_secrets(config.storage)} if config.storage else {}
    settings = shared_settings(config) | data | elsewhere
    without_file = annotations.filter(pc.is_null(annotations["path"]))
    missing = sorted(without_file["video"].unique().to_pylist())
    try:
        store = Store(folder)
        store.write(BENCHMARK, json.dumps(settings, indent=1).encode())
        store.write("missing.txt", "".join(f"{video}\n" for video in missing).encode())
    except OSError as error:
        raise ConfigError(f"output: cannot write to {folder}: {error.strerror}") from None
    if missing:
        print(f"  {len(missing)} videos of the annotations have no file: listed in {folder}/missing.txt")


def check_store(config: RunConfig) -> None:
    """Refuse, before hours of work, an MLflow store that cannot be used; a server may be away."""
    if "tune" in config.stages:
        with suppress(track.ServerAwayError):
            track.open_store(config.mlflow.uri, config.mlflow.experiment or config.name, Path(config.output))


def _results_in(config: RunConfig) -> Mapping[str, Any]:
    """What the runs share whose results are in the output folder; empty where there is nothing to lose."""
    folder = Path(config.output)
    file = folder / BENCHMARK
    if not file.is_file():
        return {}
    try:
        before = json.loads(file.read_text())
    except ValueError:
        raise ConfigError(
            f"output: {file} is damaged, so nobody can say what {folder} belongs to; set output=... to a new"
            " folder, or delete that file if it is this config's"
        ) from None

    # shards lie elsewhere, or the folder holds a small CLIP
    makes_more = "storage" in before or config.shapes is not None
    has_results = any((folder / name).exists() for name in RESULTS)
    return before if makes_more or has_results else {}


def _taken(config: RunConfig, key: str, before: object, now: object) -> ConfigError:
    return ConfigError(
        f"output: {config.output} belongs to another config ({key} is {_short(before)}, now {_short(now)});"
        " set output=... to a new folder, or delete that one"
    )


def _short(section: object) -> str:
    return json.dumps(section).replace('"', "")[:150]


def _decode(config: RunConfig, annotations: pa.Table, data: Data, home: str) -> str:
    """Decode what is not in the shards of the folder `home` yet; returns their folder."""
    ingested = ingest(
        annotations,
        below(config.storage or config.output, home),
        config.video,
        videos=data.videos,
        allow_missing=data.missing == "allow",
    )
    counts = f"{ingested.ok:,} ok, {ingested.damaged} damaged, {ingested.failed} failed"
    if ingested.missing:
        counts += f", {ingested.missing:,} without a file"
    cost = f"{ingested.decoded_now:,} decoded now, in {ingested.seconds:.0f} s"
    print(f"{ingested.videos:,} videos: {counts} ({cost}); shards in {ingested.folder}")
    if ingested.failed:
        print(f"  why they failed: {ingested.folder}/failed.csv")
    return ingested.folder


def _verify(folder: str) -> None:
    """Read every shard in full and compare it with what was committed."""
    faults = verify(folder)
    if faults:
        hint = "delete each with its .json, and stages=[ingest] decodes it anew"
        lines = [f"{len(faults)} shards are not what was written; {hint}", *faults]
        raise DamagedShardsError("\n  ".join(lines))
    print(f"every shard in {folder} is what was written")
