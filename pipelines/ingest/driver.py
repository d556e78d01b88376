"""Videos to shards, each video once: Ray Data hands out shards to write; only index rows come back.

Kill it anywhere and start it again: committed shards stay, the others are decoded. A video that fails is
a row with a reason.
"""

import csv
import io
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import ray
import ray.data
from pyarrow import fs

from pipelines.cluster.machines import num_cpus
from pipelines.command.exit_codes import CommandFailedError
from pipelines.ingest.progress import followed
from pipelines.ingest.task import DiskFullError, IngestSettings, decode_shard
from vopcore.shards import (
    Entry,
    Layout,
    Moment,
    Sidecar,
    Storage,
    default_storage,
    folder_name,
    is_current,
    moments_in,
    rows_per_shard,
    shard_plan,
    sidecars,
)
from vopcore.storage import Store, below, open_uri, source_facts
from vopcore.video import DECODER_VERSION

INDEX = pa.schema([("video", pa.string()), ("status", pa.string()), ("disk_full", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What an ingest leaves behind: the folder of shards, how many of the wanted videos ended how, and
    what it cost now.
    """

    folder: str
    videos: int
    ok: int
    damaged: int
    failed: int
    decoded_now: int
    seconds: float


class TooManyFailedError(CommandFailedError):
    """More videos failed than the run allows; the message is a summary for people."""

    exit_code = 3


def ingest(
    annotations: pa.Table,
    root: str,
    *,
    stored_frames: int,
    size: int = 224,
    sampler: str = "uniform",
    storage: Storage | None = None,
    quality: int = 95,
    max_failed: float = 0.01,
    shard_megabytes: int = 256,
    time_limit: float = 600.0,
    videos: str | None = None,
) -> Ingested:
    """Decodes the videos of an ANNOTATIONS table into shards under `root` (path or URI), on the Ray this
    process has joined.

    `videos` is the folder that holds the videos, where that is no local one: paths of the table are paths
    in its file system.

    `storage` None picks raw or jpeg by the size of a video's frames. `max_failed` is a share of all
    videos. `time_limit` (seconds) is for one video. Raises ValueError (no room for the shards, a video id
    with two meanings, nothing that can be decoded), DiskFullError (a ValueError) and TooManyFailedError;
    what was committed until then stays.
    """
    started = time.monotonic()
    layout = Layout(size, storage or default_storage(stored_frames, size), quality)
    name = folder_name(
        sampler=sampler, stored_frames=stored_frames, layout=layout, decoder_version=DECODER_VERSION
    )
    settings = IngestSettings(
        folder=below(root, name),
        layout=layout,
        sampler=sampler,
        stored_frames=stored_frames,
        time_limit=time_limit,
        filesystem=open_uri(videos or "/")[0],
    )
    store, moments = Store(settings.folder), moments_in(annotations)
    committed = sidecars(store)
    entries = _current(settings, _by_video(committed), moments)
    todo = [moment for moment in moments if moment.video not in entries]
    check_room(store, layout, sum(moment.path is not None for moment in todo) * stored_frames)
    rows = rows_per_shard(len(moments), stored_frames * layout.bytes_per_frame(), shard_megabytes, num_cpus())
    plan = shard_plan(todo, [sidecar.number for sidecar in committed], rows)

    may_fail = int(max_failed * len(moments)) - _num_failed(entries)
    if may_fail >= 0:
        _decode_all(settings, plan, may_fail)
    entries = _current(settings, _by_video(sidecars(store)), moments, look=False)
    _write_failed(store, moments, entries)
    if _num_failed(entries) == len(entries):
        raise ValueError(
            f"none of the {len(moments):,} videos can be decoded: {store.path('failed.csv')} says why"
        )
    if _num_failed(entries) > max_failed * len(moments):
        raise TooManyFailedError(_failure_summary(store, entries, len(moments), max_failed))
    if len(entries) < len(moments):
        raise ValueError(
            f"{len(moments) - len(entries):,} videos were decoded by other machines, and {settings.folder}"
            " here does not show them: shards belong on a disk that all machines share, or in s3:// or gs://"
        )
    counts = Counter(entry.status for entry in entries.values())
    return Ingested(
        folder=settings.folder,
        videos=len(moments),
        ok=counts["ok"],
        damaged=counts["damaged"],
        failed=counts["failed"],
        decoded_now=len(todo),
        seconds=time.monotonic() - started,
    )


def check_room(store: Store, layout: Layout, num_frames: int) -> None:
    """Raises ValueError if the disk cannot hold `num_frames` more frames."""
    needed, free = num_frames * layout.bytes_per_frame(), store.free_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"{store.folder} needs about {needed / 1e9:.1f} GB for {num_frames:,} frames and has "
            f"{free / 1e9:.1f} GB free; choose another folder, fewer stored_frames, or storage: jpeg"
        )


def _by_video(committed: list[Sidecar]) -> dict[str, Entry]:
    return {entry.video: entry for sidecar in committed for entry in sidecar.entries}


def _num_failed(entries: dict[str, Entry]) -> int:
    return sum(entry.status == "failed" for entry in entries.values())


def _current(
    settings: IngestSettings, entries: dict[str, Entry], moments: list[Moment], look: bool = True
) -> dict[str, Entry]:
    """The entries that still answer for their moments. Looks at local files and, as that costs a request,
    at remote ones only where they failed."""

    def current(moment: Moment) -> bool:
        entry = entries.get(moment.video)
        if entry is None:
            return False
        looked = look and (entry.status == "failed" or isinstance(settings.filesystem, fs.LocalFileSystem))
        return is_current(entry, moment, source_facts(settings.filesystem, moment.path) if looked else None)

    return {moment.video: entries[moment.video] for moment in moments if current(moment)}


def _decode_all(settings: IngestSettings, plan: list[tuple[int, list[Moment]]], may_fail: int) -> None:
    """Writes the planned shards; stops early once more than `may_fail` videos have failed."""
    if not plan:
        return
    failed = 0
    with followed(sum(len(moments) for _, moments in plan)) as tally:
        for index in _index_rows(settings, plan, tally):
            if reason := next(filter(None, index["disk_full"].to_pylist()), None):
                raise DiskFullError(
                    f"{reason}; make room and run the same command again, finished shards are kept"
                )
            failed += index["status"].to_pylist().count("failed")
            if failed > may_fail:
                return


def _index_rows(
    settings: IngestSettings, plan: list[tuple[int, list[Moment]]], tally: ray.actor.ActorHandle
) -> Iterator[pa.Table]:
    """The index rows of each shard, as it is committed. One row, one block, one task, one shard."""
    items = [{"number": number, "moments": json.dumps(moments)} for number, moments in plan]
    given = {"settings": settings, "tally": tally}
    with quiet_ray_data():
        yield from (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(_task, batch_size=1, batch_format="pyarrow", num_cpus=1, fn_kwargs=given)
            .iter_batches(batch_size=None, batch_format="pyarrow")
        )


def _task(batch: pa.Table, settings: IngestSettings, tally: ray.actor.ActorHandle) -> pa.Table:
    number, moments = batch["number"][0].as_py(), json.loads(batch["moments"][0].as_py())

    def tell(done: int, failed: int) -> None:
        tally.tell.remote(number, done, failed)

    try:
        entries = decode_shard(settings, number, [Moment(*moment) for moment in moments], tell)
    except DiskFullError as error:  # a row, not an exception: Ray would drown the reason in its traceback
        return pa.Table.from_pylist([{"disk_full": str(error)}], schema=INDEX)
    return pa.Table.from_pylist([{"video": e.video, "status": e.status} for e in entries], schema=INDEX)


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Without Ray Data's own bars, its log of each execution, and its advice to turn the bars on again."""
    context = ray.data.DataContext.get_current()
    levels = {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}
    before = {name: logging.getLogger(name).level for name in levels}
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    _set_levels(levels)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        _set_levels(before)


def _set_levels(levels: dict[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _write_failed(store: Store, moments: list[Moment], entries: dict[str, Entry]) -> None:
    """failed.csv beside the shards: every video that is damaged or failed, with the reason."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["video", "status", "error", "path"])
    for moment in moments:
        entry = entries.get(moment.video)
        if entry is not None and entry.status != "ok":
            writer.writerow([entry.video, entry.status, entry.error, moment.path])
    store.write("failed.csv", table.getvalue().encode())


def _failure_summary(store: Store, entries: dict[str, Entry], num_videos: int, max_failed: float) -> str:
    failures = [entry for entry in entries.values() if entry.status == "failed"]
    reasons = Counter(entry.error for entry in failures).most_common(5)
    lines = [
        f"{len(failures)} of {num_videos} videos failed, more than max_failed ({max_failed:.2%}) allows",
        *(f"  {count:>5}  {reason}" for reason, count in reasons),
        f"all of them: {store.path('failed.csv')}",
        "mend them, or raise video.max_failed: the same command goes on from here",
    ]
    return "\n".join(lines)
