"""Reads shards: which videos are committed, and their frames through a memory map."""

import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs

from vopcore.shards.schema import Entry, Layout
from vopcore.shards.write import arrow_name
from vopcore.storage.cache import ShardCache
from vopcore.storage.hashing import file_sha256
from vopcore.storage.store import Store


class Sidecar(NamedTuple):
    """What a shard's JSON file says."""

    number: int
    rows: int
    bytes: int
    sha256: str
    layout: Layout
    entries: list[Entry]


def sidecars(store: Store) -> list[Sidecar]:
    """The committed shards, by number."""
    names = [name for name in store.names() if name.endswith(".json") and name[:-5].isdigit()]
    with ThreadPoolExecutor(1 if store.is_local else 32) as pool:  # an object store answers late
        said = pool.map(store.read, names)
        return [_sidecar(int(name[:-5]), json.loads(text)) for name, text in zip(names, said, strict=True)]


def _sidecar(number: int, said: dict[str, Any]) -> Sidecar:
    entries = [Entry(**video) for video in said["videos"]]
    return Sidecar(number, said["rows"], said["bytes"], said["sha256"], Layout(**said["layout"]), entries)


class Shards:
    """The committed videos of a shard folder.

    `videos` maps a video's id to its entry; decoded twice (its file was replaced), the later shard
    counts. Pickles, and may be used by several threads. Shards of an object store are copied once to
    `cache`, on this machine; what has no room there is read from the store, video by video.
    """

    def __init__(self, folder: str | Path, cache: ShardCache | None = None) -> None:
        self._store = Store(folder)
        self._cache = cache or ShardCache()
        self._sidecars = {sidecar.number: sidecar for sidecar in sidecars(self._store)}
        self._place = {
            entry.video: (sidecar.number, row)
            for sidecar in self._sidecars.values()
            for row, entry in enumerate(sidecar.entries)
        }
        self.videos: dict[str, Entry] = {
            video: self._sidecars[number].entries[row] for video, (number, row) in self._place.items()
        }
        self._readers: dict[int, pa.RecordBatchFileReader] = {}
        self._held: dict[int, BinaryIO | None] = {}  # keeps them in the cache
        self._lock = threading.Lock()

    def num_frames(self, video: str) -> int:
        """How many frames of a video are stored; 0 for a failed one."""
        number, row = self._place[video]
        return self._sidecars[number].entries[row].num_frames

    def place(self, video: str) -> tuple[str, int]:
        """The SHA-256 of a video's shard and its row there: another one as soon as a pixel differs."""
        number, row = self._place[video]
        return self._sidecars[number].sha256, row

    def frames(self, video: str, indices: list[int] | None = None) -> np.ndarray:
        """The stored frames of a video, uint8 [F, size, size, 3], or those at `indices`.

        All frames of a raw shard are a read-only view of the file. A failed video has none: [0, size,
        size, 3]. Raises KeyError for a video that is not committed.
        """
        number, row = self._place[video]
        sidecar = self._sidecars[number]
        if sidecar.entries[row].num_frames == 0:
            return np.zeros((0, sidecar.layout.size, sidecar.layout.size, 3), np.uint8)
        with self._lock:
            batch = self._reader(sidecar).get_batch(row)
        return sidecar.layout.pixels(batch, indices)

    @staticmethod
    def tensor(frames: np.ndarray) -> torch.Tensor:
        """Frames [..., size, size, 3] as the towers want them, uint8 [..., 3, size, size]."""
        return torch.from_numpy(frames).movedim(-1, -3)

    def _reader(self, sidecar: Sidecar) -> pa.RecordBatchFileReader:
        if sidecar.number not in self._readers:
            self._readers[sidecar.number] = pa.ipc.open_file(self._file(sidecar))
        return self._readers[sidecar.number]

    def _file(self, sidecar: Sidecar) -> pa.NativeFile:
        file, held = self._cache.open(self._store, arrow_name(sidecar.number), sidecar.sha256)
        self._held[sidecar.number] = held
        return file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}, "_held": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_lock": threading.Lock()}


def verify(folder: str | Path) -> list[str]:
    """Reads every committed shard in full and compares it with its sidecar; one line for each fault,
    none if all is well.
    """
    store = Store(folder)
    faults = []
    for sidecar in sidecars(store):
        name = arrow_name(sidecar.number)
        if not store.exists(name):
            faults.append(f"{store.path(name)}: is missing")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(store.path(name))
            if not store.is_local:
                path = Path(scratch) / name
                fs.copy_files(store.path(name), str(path), store.filesystem, fs.LocalFileSystem())
            faults += [f"{store.path(name)}: {fault}" for fault in _faults(path, sidecar)]
    return faults


def _faults(path: Path, sidecar: Sidecar) -> list[str]:
    num_bytes = path.stat().st_size
    if num_bytes != sidecar.bytes:
        return [f"has {num_bytes:,} bytes, was written with {sidecar.bytes:,}"]
    if file_sha256(path) != sidecar.sha256:
        return ["its content has changed since it was written (sha256 differs)"]
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
        videos = [reader.get_batch(row)["video"][0].as_py() for row in range(reader.num_record_batches)]
    if videos != [entry.video for entry in sidecar.entries] or len(videos) != sidecar.rows:
        return [f"holds {len(videos)} videos, its sidecar lists {sidecar.rows} or others"]
    return []
