"""Bring an index up to date with its folder, on the Ray that this process has joined.

Ray Data hands out videos to tasks that decode and windows to actors that encode; rows come back to this
process, which writes whole videos. Kill it anywhere and start it again: what was written stays.
"""

import csv
import io
import pickle
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from pipelines.command.progress import Bar
from pipelines.indexing.files import Listing, VideoFile, list_videos
from pipelines.indexing.task import DecodeSettings, DecodingChild, Ending
from pipelines.ingest.driver import quiet_ray_data
from vopcore.index import Index, IndexedVideo, MomentRows, VideoRows
from vopcore.index.encode import WindowEncoder
from vopcore.index.model import local_model
from vopcore.index.moments import Span
from vopcore.storage import Store

FAILED_FILE = "failed.csv"
WRITE_EVERY = 30.0  # seconds; what was encoded since is lost with the process
WRITE_MOMENTS = 20_000


@dataclass(frozen=True, kw_only=True)
class IndexWork:
    """How the work is done. `encoders`: actors at most; `gpu`: each holds one."""

    decode: DecodeSettings
    encoders: int
    gpu: bool


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What an update has done: videos by how they ended, and what the index holds now."""

    added: int
    renewed: int
    dropped: int
    failed: int
    videos: int
    moments: int
    seconds: float

    @property
    def changed(self) -> bool:
        return bool(self.added or self.renewed or self.dropped)


def update(index: Index, work: IndexWork) -> Updated:
    """Add new videos, renew changed ones, drop those that are gone.

    Raises FolderError where the folder is gone or holds no video.
    """
    began = time.monotonic()
    index.refresh()
    listing = list_videos(work.decode.root)
    changes = compare(index, listing)

    index.table.drop(changes.gone)
    index.table.add((entry, None) for entry in changes.refused)
    for rows in _batches(_encoded(index, work, changes.todo)):
        index.table.add(rows)
    index.table.tidy()

    failed = list(index.table.failed)
    write_failed(index.store, failed)
    return Updated(
        added=changes.num_new,
        renewed=len(changes.todo) - changes.num_new,
        dropped=len(changes.gone),
        failed=len(failed),
        videos=len(index.table.videos),
        moments=index.table.num_moments,
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What an update has to do; `num_new` of `todo` are not in the index yet."""

    todo: list[VideoFile]
    num_new: int
    gone: list[str]
    refused: list[IndexedVideo]


def compare(index: Index, listing: Listing) -> Changes:
    """What differs between the folder and the index; a file is the same while its size and time are."""
    indexed = {entry.video: entry for entry in (*index.table.videos, *index.table.failed)}
    todo = []
    num_new = 0
    for file in listing.files:
        entry = indexed.get(file.video)
        if entry is None or (entry.size, entry.mtime) != (file.size, file.mtime):
            todo.append(file)
            num_new += entry is None

    listed = {file.video for file in listing.files}
    listed |= {entry.video for entry in listing.refused}
    gone = [video for video in indexed if video not in listed]
    refused = [entry for entry in listing.refused if indexed.get(entry.video) != entry]
    return Changes(
        todo=todo,
        num_new=num_new,
        gone=gone,
        refused=refused,
    )


def _batches(videos: Iterable[VideoRows]) -> Iterator[list[VideoRows]]:
    """What is written at once: enough to be worth it, often enough to lose little."""
    rows: list[VideoRows] = []
    num_moments = 0
    written = time.monotonic()
    for entry, windows in videos:
        rows.append((entry, windows))
        num_moments += len(windows.spans) if windows is not None else 0
        if num_moments >= WRITE_MOMENTS or time.monotonic() - written > WRITE_EVERY:
            yield rows
            rows = []
            num_moments = 0
            written = time.monotonic()
    yield rows


def _encoded(
    index: Index,
    work: IndexWork,
    files: list[VideoFile],
) -> Iterator[VideoRows]:
    """Each video once, in any order, when all of its pieces are there."""
    if not files:
        return
    by_name = {file.video: file for file in files}
    pieces: dict[str, dict[int, MomentRows]] = {}
    endings: dict[str, tuple[Ending, int]] = {}
    num_failed = 0
    with Bar("index", len(files), "videos") as bar:
        num_done = 0
        for batch in _pieces(index, work, files):
            for row in batch.to_pylist():
                video = row["video"]
                piece = pickle.loads(row["content"])
                if isinstance(piece, Ending):
                    endings[video] = (piece, row["number"])
                else:
                    pieces.setdefault(video, {})[row["number"]] = piece
                if video not in endings or len(pieces.get(video, {})) < endings[video][1]:
                    continue

                ending, _ = endings.pop(video)
                yield _finished(by_name[video], ending, pieces.pop(video, {}))
                num_done += 1
                num_failed += ending.status == "failed"
                bar.show(num_done, f"{num_failed} failed" if num_failed else "")


def _finished(
    file: VideoFile,
    ending: Ending,
    pieces: dict[int, MomentRows],
) -> VideoRows:
    entry = IndexedVideo(
        video=file.video,
        size=file.size,
        mtime=file.mtime,
        status=ending.status,
        error=ending.error,
        duration=ending.duration,
    )
    # Of a video that broke off in a later pass the first windows are not kept: all or nothing.
    if ending.status == "failed":
        return replace(entry, duration=0.0), None
    return entry, join([pieces[number] for number in sorted(pieces)])


def join(pieces: list[MomentRows]) -> MomentRows:
    """The pieces of one video as one."""
    spans: list[Span] = []
    frames = []
    thumbnails: list[bytes] = []
    num_frames = 0
    for piece in pieces:
        spans += piece.spans
        thumbnails += piece.thumbnails
        for rows in piece.frames:
            # Frames are counted over all pieces.
            frames.append([row + num_frames for row in rows])
        num_frames += len(piece.times)

    best = [piece.best for piece in pieces]
    vectors = [piece.vectors for piece in pieces]
    features = [piece.features for piece in pieces]
    times = [piece.times for piece in pieces]
    return MomentRows(
        spans=spans,
        best=np.concatenate(best),
        vectors=np.concatenate(vectors),
        features=np.concatenate(features),
        times=np.concatenate(times),
        frames=frames,
        thumbnails=thumbnails,
    )


def _pieces(
    index: Index,
    work: IndexWork,
    files: list[VideoFile],
) -> Iterator[pa.Table]:
    """(video, number, content): encoded windows, and the ending with the number of pieces before it."""
    items = [{"video": file.video} for file in files]
    decode_task: Any = _decode_task  # Ray has no type for one with arguments of its own
    encoders = ray.data.ActorPoolStrategy(min_size=1, max_size=work.encoders)
    # Other resources than a decoding task's: with the same ones Ray Data would run both in the actor, and
    # nothing would be decoded while it encodes.
    resources = {"num_gpus": 1} if work.gpu else {"num_cpus": 0.9}
    encoder = {
        "uri": index.store.folder,
        "tuned": index.header.tuned,
        "device": "cuda" if work.gpu else "cpu",
    }
    with quiet_ray_data():
        yield from (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(
                decode_task,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=1,
                fn_kwargs={"settings": work.decode},
            )
            .map_batches(
                EncodeActor,
                batch_size=1,
                batch_format="pyarrow",
                compute=encoders,
                fn_constructor_kwargs=encoder,
                **resources,
            )
            .iter_batches(batch_size=None, batch_format="pyarrow")
        )


_children: dict[str, DecodingChild] = {}


def _decode_task(batch: pa.Table, settings: DecodeSettings) -> Iterator[pa.Table]:
    """One video's pieces, each a row. The child stays for the next task of this process."""
    key = repr(settings)
    if key not in _children:
        _children[key] = DecodingChild(settings)
    video = batch["video"][0].as_py()
    for number, piece in enumerate(_children[key].decode(video)):
        yield _row(video, number, piece)


class EncodeActor:
    """Holds the CLIP, and turns the frames of windows into their vectors."""

    def __init__(
        self,
        uri: str,
        tuned: str,
        device: str,
    ) -> None:
        # Said, not found out: a machine may have a GPU that is not meant for this.
        self._encoder = WindowEncoder(local_model(uri, tuned), device)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            piece = pickle.loads(row["content"])
            if not isinstance(piece, Ending):
                piece = self._encoder.rows(piece)
            yield _row(row["video"], row["number"], piece)


def _row(
    video: str,
    number: int,
    piece: object,
) -> pa.Table:
    content = pickle.dumps(piece, protocol=pickle.HIGHEST_PROTOCOL)
    return pa.table({"video": [video], "number": [number], "content": pa.array([content], pa.large_binary())})


def write_failed(store: Store, failed: list[IndexedVideo]) -> None:
    """failed.csv in the index: every file that is no moment of it, and why."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["video", "error"])
    for entry in failed:
        writer.writerow([entry.video, entry.error])
    store.write(FAILED_FILE, table.getvalue().encode())


def default_index(root: str) -> str:
    """Where the index of a folder goes, unless it is said."""
    name = Path(root.split("?")[0].rstrip("/")).name or "videos"
    return str(Path("outputs/indexes").absolute() / name)
