"""Reads shards: which videos are committed, and their frames through a memory map."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import fs

from vopcore.shards.index import Entries, ShardFile, read_index
from vopcore.shards.readers import ArrowFiles, FileName
from vopcore.shards.schema import Entry, Layout, check_format
from vopcore.shards.write import arrow_name, sidecar_name
from vopcore.storage import ShardCache, Store, file_sha256, scratch_folder


class Sidecar(NamedTuple):
    """What a shard's JSON file says."""

    number: int
    rows: int
    bytes: int
    sha256: str
    layout: Layout
    entries: list[Entry]


def sidecars(store: Store) -> list[Sidecar]:
    """The committed shards, by number, read one by one; `Shards` has the same from the index."""
    numbers = []
    for name in store.names():
        stem, _, suffix = name.rpartition(".")
        if suffix == "json" and stem.isdigit():
            numbers.append(int(stem))

    # an object store answers late, and many requests at once
    num_threads = 1 if store.is_local else 32
    names = [sidecar_name(number) for number in numbers]
    listed = []
    with ThreadPoolExecutor(num_threads) as pool:
        contents = pool.map(store.read, names)
        for number, content in zip(numbers, contents, strict=True):
            listed.append(_sidecar(number, json.loads(content)))
    return listed


def _sidecar(number: int, content: dict[str, Any]) -> Sidecar:
    check_format(content, number)
    return Sidecar(
        number=number,
        rows=content["rows"],
        bytes=content["bytes"],
        sha256=content["sha256"],
        layout=Layout(**content["layout"]),
        entries=[Entry(**video) for video in content["videos"]],
    )


class Shards:
    """The committed videos of a shard folder.

    `videos` maps a video's id to its entry; decoded twice (its file was replaced), the later shard
    counts. Pickles, and is read by any number of threads at once. Shards of an object store are copied once
    to `cache`, on this machine; what has no room there is read from the store, video by video.
    """

    def __init__(self, folder: str | Path, cache: ShardCache | None = None) -> None:
        self._store = Store(folder)
        self._cache = cache or ShardCache()
        self._open()

    def _open(self) -> None:
        self._index = read_index(self._store, self._cache)
        self._files = ArrowFiles(self._store, self._cache)
        self.videos: Mapping[str, Entry] = Entries(self._index)

    def decoded(self) -> pa.Array:
        """The ids of all videos that have frames, sorted."""
        table = self._index.table
        has_frames = pc.greater(table.column("num_frames"), 0)
        videos = table.column("video").filter(has_frames)
        return videos.combine_chunks()

    def digest(self, videos: Sequence[str] | pa.Array | None = None) -> str:
        """Sixteen characters that change when one of `videos` (None: all) gives other frames; see
        `ShardIndex.digest`.
        """
        return self._index.digest(videos)

    def num_frames(self, video: str) -> int:
        """How many frames of a video are stored; 0 for a failed one."""
        return self._index.value("num_frames", self._position(video))

    def place(self, video: str) -> tuple[str, int]:
        """The SHA-256 of a video's shard and its row there: another one as soon as a pixel differs."""
        position = self._position(video)
        shard = self._shard_at(position)
        return shard.sha256, self._index.value("row", position)

    def frames(
        self,
        video: str,
        indices: list[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The stored frames of a video, uint8 [F, size, size, 3], or those at `indices`; into `out` if given.

        All frames of a raw shard are a read-only view of the file. A failed video has none: [0, size,
        size, 3]. Raises KeyError for a video that is not committed.
        """
        position = self._position(video)
        shard = self._shard_at(position)
        size = shard.layout.size
        if self._index.value("num_frames", position) == 0:
            return np.zeros((0, size, size, 3), np.uint8)

        row = self._index.value("row", position)
        batch = self._files.batch(_file_of(shard), row)
        return shard.layout.pixels(batch, indices, out)

    def prefetch(self, videos: Iterable[str]) -> None:
        """Begin to fetch the shards of videos that will be read soon; returns at once."""
        if self._store.is_local:
            return
        files = []
        for video in videos:
            shard = self._shard_at(self._position(video))
            files.append(_file_of(shard))
        self._files.prefetch(files)

    @staticmethod
    def tensor(frames: np.ndarray) -> torch.Tensor:
        """Frames [..., size, size, 3] as the towers want them, uint8 [..., 3, size, size]."""
        return torch.from_numpy(frames).movedim(-1, -3)

    def _position(self, video: str) -> int:
        position = self._index.position(video)
        if position is None:
            raise KeyError(video)
        return position

    def _shard_at(self, position: int) -> ShardFile:
        """The shard of a row of the index."""
        number = self._index.value("shard", position)
        return self._index.shards[number]

    def __getstate__(self) -> dict[str, Any]:
        # open files and locks do not pickle; the other process opens its own
        return {"_store": self._store, "_cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _file_of(shard: ShardFile) -> FileName:
    return FileName(arrow_name(shard.number), shard.sha256)


def verify(folder: str | Path) -> list[str]:
    """Reads every committed shard in full and compares it with its sidecar; one line for each fault,
    none if all is well.
    """
    store = Store(folder)
    faults = []
    for sidecar in sidecars(store):
        name = arrow_name(sidecar.number)
        place = store.path(name)
        if not store.exists(name):
            faults.append(f"{place}: is missing")
            continue

        # an object store's file is copied, as it is read twice: to be hashed, and as a memory map
        with scratch_folder() as scratch:
            path = Path(place)
            if not store.is_local:
                path = scratch / name
                disk = fs.LocalFileSystem()
                fs.copy_files(place, str(path), store.filesystem, disk)
            faults += [f"{place}: {fault}" for fault in _faults(path, sidecar)]
    return faults


def _faults(path: Path, sidecar: Sidecar) -> list[str]:
    """What is wrong with one shard, the cheapest test first."""
    num_bytes = path.stat().st_size
    if num_bytes != sidecar.bytes:
        return [f"has {num_bytes:,} bytes, was written with {sidecar.bytes:,}"]
    if file_sha256(path) != sidecar.sha256:
        return ["its content has changed since it was written (sha256 differs)"]

    videos = []
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
        for row in range(reader.num_record_batches):
            batch = reader.get_batch(row)
            videos.append(batch["video"][0].as_py())

    listed = [entry.video for entry in sidecar.entries]
    if videos != listed or len(videos) != sidecar.rows:
        return [f"holds {len(videos)} videos, its sidecar lists {sidecar.rows} or others"]
    return []
