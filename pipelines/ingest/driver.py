"""Videos to shards, each video once, of whatever sizes: Ray Data hands out shards to write; only index rows
come back.

Kill it anywhere and start it again: committed shards stay, the others are decoded. A video that fails is
a row with a reason. One ingest at a time writes to a folder of shards; another one waits and then decodes
what is left.
"""

import csv
import io
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from pyarrow import fs

from pipelines.cluster.failures import reason_of
from pipelines.cluster.machines import num_cpus
from pipelines.command.exit_codes import CommandFailedError
from pipelines.ingest.progress import Teller, followed
from pipelines.ingest.task import DiskFullError, IngestSettings, ShardFolder, decode_shard, layout_of
from vopcore.config.sections import Video
from vopcore.datasets import SPLITS
from vopcore.shards import (
    Moment,
    ShardIndex,
    State,
    folder_name,
    moment_table,
    moments_of,
    read_index,
    rows_per_shard,
    save_index,
    shard_plan,
    states,
)
from vopcore.storage import (
    LockedError,
    StorageError,
    Store,
    all_source_facts,
    below,
    open_uri,
    source_sha256,
    writer_lock,
)
from vopcore.video import DECODER_VERSION, Interpolation, Resize

log = logging.getLogger(__name__)

# What a task returns of each of its videos; or one row that says why it could not write its shard.
INDEX = pa.schema(
    [
        ("status", pa.string()),
        ("disk_full", pa.string()),
        ("store_away", pa.string()),
    ]
)
OPENAI = {
    "size": 224,
    "resize": "shortest",
    "interpolation": "bicubic",
}  # how its CLIP sees a picture
COMPARERS = 16  # threads that read files whose time has changed
REMOTE_CLOCK = 1.0  # seconds: an object store tells an object's time in two ways


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What an ingest leaves behind: the folder of shards, how many of the wanted videos ended how (`missing`:
    no file was found for them), and what it cost now.
    """

    folder: str
    videos: int
    ok: int
    damaged: int
    failed: int
    missing: int
    decoded_now: int
    seconds: float


@dataclass(frozen=True)
class Tolerance:
    """How many videos may fail: `max_failed`, a share of `videos`. The `missing` ones count among those that
    failed, or not at all.
    """

    videos: int
    missing: int
    max_failed: float
    allow_missing: bool

    @property
    def num_may_fail(self) -> int:
        """Videos with a file that may fail; below 0 where too many have none."""
        if self.allow_missing:
            return int(self.max_failed * (self.videos - self.missing))
        return int(self.max_failed * self.videos) - self.missing

    def is_exceeded_by(self, failed: int) -> bool:
        """Whether too many have failed."""
        return failed > self.num_may_fail


class TooManyFailedError(CommandFailedError):
    """More videos failed than the run allows; the message is a summary for people."""

    exit_code = 3


class IngestFailedError(CommandFailedError):
    """An ingest that could not go on, for a reason that lies in the machines; one line says which."""


def ingest(
    annotations: pa.Table,
    root: str,
    video: Video,
    videos: str | None = None,
    allow_missing: bool = False,
) -> Ingested:
    """Decodes the videos of an ANNOTATIONS table into shards under `root` (path or address), on the Ray this
    process has joined.

    `video` says which frames are kept and how. `videos` is the folder that holds the videos, where that is
    no local one: paths of the table are paths in its file system. Videos without a file count as failed,
    unless `allow_missing`. Raises ValueError (no room for the shards, a video id with two meanings, nothing
    that can be decoded), DiskFullError (a ValueError), TooManyFailedError and IngestFailedError; what was
    committed until then stays.
    """
    with _plain_errors():
        return _ingest(
            annotations,
            root,
            video,
            videos,
            allow_missing,
        )


def _ingest(
    annotations: pa.Table,
    root: str,
    video: Video,
    videos: str | None,
    allow_missing: bool,
) -> Ingested:
    started = time.monotonic()
    settings = ingest_settings(root, video, videos)
    moments = moment_table(annotations)

    # What the run sees comes first, and decides whether too many videos are missing.
    stands = _stands(settings, moments)
    state = stands[0].state
    num_missing = int((state == State.MISSING).sum())
    tolerance = Tolerance(
        moments.num_rows,
        num_missing,
        video.max_failed,
        allow_missing,
    )
    if tolerance.is_exceeded_by(0):
        raise TooManyFailedError(_missing_summary(annotations, moments, state, video.max_failed))

    decoded_now = 0
    if any(stand.num_wanted for stand in stands):
        _check_room(settings, stands)
        with _only_writer(stands):
            decoded_now, stands = _ingest_alone(settings, moments, video, tolerance)
    else:
        for stand in stands:
            _save_if_free(stand.store, stand.index)

    for stand in stands:
        statuses_of_size = _statuses(moments, stand.index, stand.state)
        _write_failed(stand.store, moments, stand.index, statuses_of_size)

    seen = stands[0]
    statuses = _statuses(moments, seen.index, seen.state)
    counts = Counter(statuses.to_pylist())
    result = Ingested(
        folder=settings.folder,
        videos=moments.num_rows,
        ok=counts["ok"],
        damaged=counts["damaged"],
        failed=counts["failed"],
        missing=counts["missing"],
        decoded_now=decoded_now,
        seconds=time.monotonic() - started,
    )
    _check_result(
        seen.store,
        moments,
        seen.index,
        statuses,
        result,
        tolerance,
    )
    return result


def ingest_settings(
    root: str,
    video: Video,
    videos: str | None = None,
) -> IngestSettings:
    """What the tasks of an ingest into `root` need to know; `videos` as in `ingest`."""
    video = _without_auto(video)
    first, *others = [_shard_folder(root, video, size) for size in video.sizes]
    filesystem, _ = open_uri(videos or "/")
    return IngestSettings(
        folder=first.folder,
        layout=first.layout,
        others=tuple(others),
        sampler=video.sampler,
        stored_frames=video.kept,
        time_limit=video.time_limit,
        resize=cast(Resize, video.resize),
        interpolation=cast(Interpolation, video.interpolation),
        filesystem=filesystem,
    )


def _shard_folder(root: str, video: Video, size: int) -> ShardFolder:
    layout = layout_of(video, size)
    name = folder_name(
        sampler=video.sampler,
        stored_frames=video.kept,
        layout=layout,
        resize=video.resize,
        interpolation=video.interpolation,
        decoder_version=DECODER_VERSION,
    )
    return ShardFolder(below(root, name), layout)


def _without_auto(video: Video) -> Video:
    """`read_config` has asked the model; settings that were made without one are OpenAI's."""
    chosen = {key: value for key, value in OPENAI.items() if getattr(video, key) == "auto"}
    return video.model_copy(update=chosen)


@dataclass(frozen=True)
class Stand:
    """How moments stand to what is committed of one size.

    state: the State of each, none TOUCHED; index: of the folder, with the times of files that were copied or
    moved and hold what they held.
    """

    place: ShardFolder
    store: Store
    index: ShardIndex
    state: np.ndarray

    @property
    def num_wanted(self) -> int:
        return int((self.state == State.WANTED).sum())


def _stands(settings: IngestSettings, moments: pa.Table) -> list[Stand]:
    """One for each size, the one that the run sees first."""
    paths = moments.column("path").to_pylist()
    facts = all_source_facts(settings.filesystem, paths)

    stands = []
    for place in settings.folders:
        store = Store(place.folder)
        committed = read_index(store)
        state, index = _compared(
            settings.filesystem,
            moments,
            committed,
            facts,
        )
        stands.append(Stand(place, store, index, state))
    return stands


def _check_room(settings: IngestSettings, stands: Sequence[Stand]) -> None:
    """Raises ValueError if the disk, which is one for all sizes, cannot hold what is wanted of them."""
    num_frames = 0
    needed = 0
    for stand in stands:
        frames_of_size = stand.num_wanted * settings.stored_frames
        num_frames += frames_of_size
        needed += frames_of_size * stand.place.layout.bytes_per_frame()

    store = stands[0].store
    free = store.free_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"{store} needs about {needed / 1e9:.1f} GB for {num_frames:,} frames and has "
            f"{free / 1e9:.1f} GB free; choose another folder, fewer stored_frames, or storage: jpeg"
        )


@contextmanager
def _only_writer(stands: Sequence[Stand]) -> Iterator[None]:
    """Be the only ingest that writes to these folders, as long as the block runs; waits for others."""
    with ExitStack() as locks:
        # In one order for all, so that two ingests never wait for each other.
        for folder in sorted(stand.store.folder for stand in stands):
            lock = writer_lock(folder, wait=True, tell=_tell)
            locks.enter_context(lock)
        yield


def _ingest_alone(
    settings: IngestSettings,
    moments: pa.Table,
    video: Video,
    tolerance: Tolerance,
) -> tuple[int, list[Stand]]:
    """Decode what is wanted, as the only one who writes to the folders; how many that were, and how all
    stands then.
    """
    # Another ingest may have ended in the meantime.
    stands = _stands(settings, moments)
    for stand in stands:
        stand.store.sweep()

    seen = stands[0]
    statuses = Counter(_statuses(moments, seen.index, seen.state).to_pylist())
    may_fail = tolerance.num_may_fail - statuses["failed"]
    plan = _plan(settings, stands, moments, video)
    if may_fail >= 0:
        _decode_all(settings, plan, may_fail)

    stands_now = []
    for stand in stands:
        index = read_index(stand.store)
        _save(stand.store, index)
        stands_now.append(replace(stand, index=index))
    num_videos = sum(len(shard.moments) for shard in plan)
    return num_videos, stands_now


@dataclass(frozen=True)
class PlannedShard:
    """A shard to write of each of `sizes`, under one number."""

    number: int
    sizes: list[int]
    moments: list[Moment]


def _plan(
    settings: IngestSettings,
    stands: Sequence[Stand],
    moments: pa.Table,
    video: Video,
) -> list[PlannedShard]:
    """The shards to write. A video that several sizes want is decoded once for all of them."""
    bytes_per_frame = max(place.layout.bytes_per_frame() for place in settings.folders)
    bytes_per_video = settings.stored_frames * bytes_per_frame
    num_rows = rows_per_shard(
        moments.num_rows,
        bytes_per_video,
        video.shard_megabytes,
        num_cpus(),
    )

    taken: set[int] = set()
    for stand in stands:
        taken.update(stand.index.shards)

    plan = []
    for sizes, is_wanted in _wants(stands):
        wanted = moments_of(moments.filter(pa.array(is_wanted)))
        for number, rows in shard_plan(wanted, taken, num_rows):
            taken.add(number)
            plan.append(PlannedShard(number, sizes, rows))
    return plan


def _wants(stands: Sequence[Stand]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Some sizes, and of each moment whether just these want it, bool [N]; each moment that is wanted once.

    Usually all sizes want the same. One that was stored before wants less than another, and an ingest that
    was killed between two shards leaves more for one.
    """
    is_wanted = np.stack([stand.state == State.WANTED for stand in stands])
    ways = {tuple(column) for column in is_wanted.T.tolist()}
    for way in sorted(ways, reverse=True):
        sizes = [stand.place.layout.size for stand, wants in zip(stands, way, strict=True) if wants]
        if sizes:
            yield sizes, np.equal(is_wanted.T, way).all(axis=1)


def _compared(
    filesystem: fs.FileSystem,
    moments: pa.Table,
    index: ShardIndex,
    facts: pa.Table,
) -> tuple[np.ndarray, ShardIndex]:
    """The State of each moment, none TOUCHED any more; and the index with the times of files that were
    copied or moved and hold what they held. facts: of the moments' files.
    """
    clock = 1e-6 if isinstance(filesystem, fs.LocalFileSystem) else REMOTE_CLOCK
    state = states(moments, index, facts, clock)
    touched = np.flatnonzero(state == State.TOUCHED)
    if not len(touched):
        return state, index

    rows = index.positions(moments.column("video").take(touched).combine_chunks())
    hashes = index.table.column("source_sha256").take(rows).to_pylist()
    paths = moments.column("path").take(touched).to_pylist()
    _tell(f"comparing {len(touched):,} files that have another time than when they were decoded")
    with ThreadPoolExecutor(COMPARERS) as pool:
        is_same = list(pool.map(lambda path, sha256: _holds(filesystem, path, sha256), paths, hashes))
    state[touched] = np.where(is_same, State.CURRENT, State.WANTED)

    same = np.flatnonzero(is_same)
    mtimes = facts.column("mtime").take(touched[same])
    return state, index.with_mtimes(rows.take(pa.array(same)), mtimes)


def _holds(
    filesystem: fs.FileSystem,
    path: str,
    sha256: str | None,
) -> bool:
    """Whether a file holds what it held when it was decoded."""
    try:
        return sha256 is not None and source_sha256(filesystem, path) == sha256
    except StorageError:
        raise
    except OSError:  # decoding it will say what is wrong with it
        return False


def _statuses(
    moments: pa.Table,
    index: ShardIndex,
    state: np.ndarray,
) -> pa.Array:
    """Of each moment ok, damaged, failed or missing; null where nothing is committed of it."""
    rows = index.positions(moments.column("video").combine_chunks())
    stored = index.table.column("status").take(rows).combine_chunks()
    is_missing = pa.array(state == State.MISSING)
    return pc.if_else(is_missing, pa.scalar("missing"), stored)


def _missing_summary(
    annotations: pa.Table,
    moments: pa.Table,
    state: np.ndarray,
    max_failed: float,
) -> str:
    """Which videos have no file, split by split."""
    missing = moments.filter(pa.array(state == State.MISSING)).column("video")
    rows = annotations.group_by(["split", "video"]).aggregate([])

    shares = []
    for split in SPLITS:
        videos = rows.filter(pc.equal(rows["split"], split))["video"]
        num_missing = pc.sum(pc.is_in(videos, missing.combine_chunks())).as_py()
        if num_missing:
            shares.append(f"{split} {num_missing:,} of {len(videos):,}")
    return (
        f"{len(missing):,} of {moments.num_rows:,} videos have no file ({', '.join(shares)}), more than"
        f" max_failed ({max_failed:.2%}) allows; the first is {missing[0].as_py()!r}\n"
        "put them into the videos' folder, or go on without them: data.missing=allow"
    )


def _decode_all(settings: IngestSettings, plan: list[PlannedShard], may_fail: int) -> None:
    """Writes the planned shards; stops early once more than `may_fail` videos have failed."""
    if not plan:
        return
    num_videos = sum(len(shard.moments) for shard in plan)
    num_failed = 0
    with followed(num_videos) as tell:
        for rows in _index_rows(settings, plan, tell):
            for reason in rows.column("disk_full").drop_null().to_pylist():
                hint = "make room and run the same command again, finished shards are kept"
                raise DiskFullError(f"{reason}; {hint}")
            for reason in rows.column("store_away").drop_null().to_pylist():
                raise StorageError(f"{reason}; the same command goes on from here")
            num_failed += rows.column("status").to_pylist().count("failed")
            if num_failed > may_fail:
                return


def _index_rows(settings: IngestSettings, plan: list[PlannedShard], tell: Teller) -> Iterator[pa.Table]:
    """The index rows of each shard, as it is committed. One row, one block, one task, one shard."""
    items = [
        {"number": shard.number, "sizes": json.dumps(shard.sizes), "moments": json.dumps(shard.moments)}
        for shard in plan
    ]
    task: Any = _task  # Ray has no type for one with arguments of its own
    arguments = {"settings": settings, "tell": tell}
    with quiet_ray_data():
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        tasks = dataset.map_batches(
            task,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
            fn_kwargs=arguments,
        )
        yield from tasks.iter_batches(batch_size=None, batch_format="pyarrow")


def _task(
    batch: pa.Table,
    settings: IngestSettings,
    tell: Teller,
) -> pa.Table:
    """Write one shard. What ends the ingest is a row, as Ray would drown the reason in its traceback."""
    number = batch["number"][0].as_py()
    sizes = json.loads(batch["sizes"][0].as_py())
    moments = [Moment(*fields) for fields in json.loads(batch["moments"][0].as_py())]

    def tell_shard(decoded: int, failed: int) -> None:
        tell(number, decoded, failed)

    tell_shard(0, 0)
    try:
        entries = decode_shard(settings.storing(sizes), number, moments, tell_shard)
    except DiskFullError as error:
        return pa.Table.from_pylist([{"disk_full": str(error)}], schema=INDEX)
    except StorageError as error:
        return pa.Table.from_pylist([{"store_away": str(error)}], schema=INDEX)

    # What fails again for a size that this run does not see was counted when it was decoded for its own.
    is_seen = settings.layout.size in sizes
    statuses = [entry.status if is_seen else None for entry in entries]
    return pa.Table.from_pylist([{"status": status} for status in statuses], schema=INDEX)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What Ray wraps around an error is taken off, and what the system did to a task is named."""
    try:
        yield
    except StorageError as error:
        raise IngestFailedError(str(error)) from error
    except ray.exceptions.RayError as error:
        raise IngestFailedError(f"ingest: {reason_of(error)}; finished shards are kept") from error


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Without Ray Data's own bars, its log of each execution, and its advice to turn the bars on again."""
    context = ray.data.DataContext.get_current()
    levels = {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}
    levels_before = {name: logging.getLogger(name).level for name in levels}
    bars_before = context.enable_progress_bars
    context.enable_progress_bars = False
    _set_levels(levels)
    try:
        yield
    finally:
        context.enable_progress_bars = bars_before
        _set_levels(levels_before)


def _set_levels(levels: dict[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _save_if_free(store: Store, index: ShardIndex) -> None:
    """Save an index that is newer than its file, unless somebody writes to the folder, who will save it."""
    if index.is_saved or not len(index):
        return
    try:
        with writer_lock(store.folder):
            _save(store, index)
    except (LockedError, OSError) as error:
        log.info("the index of %s is not saved: %s", store, error)


def _save(store: Store, index: ShardIndex) -> None:
    """An index that cannot be saved is made again by everyone who needs it, so that ends no work."""
    try:
        save_index(store, index)
    except OSError as error:
        log.warning(
            "the index of %s cannot be saved, so every start reads it anew: %s",
            store,
            error,
        )


def _write_failed(
    store: Store,
    moments: pa.Table,
    index: ShardIndex,
    statuses: pa.Array,
) -> None:
    """failed.csv beside the shards: every video that is damaged, failed or missing, with the reason."""
    is_odd = pc.fill_null(pc.not_equal(statuses, "ok"), False)
    odd = moments.append_column("status", statuses).filter(is_odd)
    if not odd.num_rows and not store.exists("failed.csv"):
        return

    rows = index.positions(odd.column("video").combine_chunks())
    errors = index.table.column("error").take(rows).to_pylist()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["video", "status", "error", "path"])
    for moment, status, error in zip(moments_of(odd), odd["status"].to_pylist(), errors, strict=True):
        reason = "no file was found for this video" if status == "missing" else error
        writer.writerow([moment.video, status, reason, moment.path])
    store.write("failed.csv", text.getvalue().encode())


def _check_result(
    store: Store,
    moments: pa.Table,
    index: ShardIndex,
    statuses: pa.Array,
    result: Ingested,
    tolerance: Tolerance,
) -> None:
    """Refuse to go on with too few frames."""
    if result.ok + result.damaged == 0 and statuses.null_count == 0:
        raise ValueError(
            f"none of the {result.videos:,} videos can be decoded: {store.path('failed.csv')} says why"
        )
    if tolerance.is_exceeded_by(result.failed):
        raise TooManyFailedError(_failure_summary(store, moments, index, statuses, tolerance))
    if statuses.null_count:
        raise ValueError(
            f"{statuses.null_count:,} videos were decoded by other machines, and {store} here does not show"
            " them: shards belong on a disk that all machines share, or in s3:// or gs://"
        )


def _failure_summary(
    store: Store,
    moments: pa.Table,
    index: ShardIndex,
    statuses: pa.Array,
    tolerance: Tolerance,
) -> str:
    failed = moments.filter(pc.fill_null(pc.equal(statuses, "failed"), False))
    rows = index.positions(failed.column("video").combine_chunks())
    reasons = Counter(index.table.column("error").take(rows).to_pylist())
    num_counted = 0 if tolerance.allow_missing else tolerance.missing
    if num_counted:
        reasons["no file was found for this video"] = num_counted

    num_failed = failed.num_rows + num_counted
    lines = [
        f"{num_failed} of {moments.num_rows} videos failed, more than max_failed"
        f" ({tolerance.max_failed:.2%}) allows"
    ]
    for reason, count in reasons.most_common(5):
        lines.append(f"  {count:>5}  {reason}")
    lines.append(f"all of them: {store.path('failed.csv')}")
    lines.append("mend them, or raise video.max_failed: the same command goes on from here")
    return "\n".join(lines)


def _tell(line: str) -> None:
    print(f"ingest: {line}", file=sys.stderr, flush=True)
