"""The cache of remote shards: fetched once, checked, never over its size, shared by processes."""

import hashlib
import logging
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from vopcore.shards import Entry, Layout, Shards, write_shard
from vopcore.storage import ShardCache, Store

SIZE = 100_000  # bytes of a file here


class Remote(Store):
    """A folder that passes for an object store; `fetched()` lists what crossed the network."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.is_local, self.filesystem, self.log = False, self, folder / "log"

    def get_file_info(self, path):
        return fs.LocalFileSystem().get_file_info(path)

    def open_input_stream(self, path):
        with self.log.open("a") as log:
            log.write(f"{Path(path).name}\n")
        return fs.LocalFileSystem().open_input_stream(path)

    def open_input_file(self, path):
        return fs.LocalFileSystem().open_input_file(path)

    def open(self, cache, i):
        """Reads file number i through the cache; returns what keeps it there."""
        data = np.random.default_rng(i).bytes(SIZE)
        Path(self.path(str(i))).write_bytes(data)
        file, held = cache.open(self, str(i), hashlib.sha256(data).hexdigest())
        assert file.read() == data
        return held

    def fetched(self):
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def remote(tmp_path):
    return Remote(tmp_path)


def room_for(tmp_path, files: int) -> ShardCache:
    return ShardCache(tmp_path / "cache", (files + 0.5) * SIZE / 1e9)


def test_a_shard_is_fetched_once(remote, tmp_path):
    for _ in range(3):
        remote.open(room_for(tmp_path, 2), 1).close()
    assert remote.fetched() == ["1"]


def test_what_was_used_longest_ago_goes_first(remote, tmp_path):
    cache = room_for(tmp_path, 2)
    for i in (1, 2, 1, 3, 1, 2):
        remote.open(cache, i).close()
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.limit
    assert remote.fetched() == ["1", "2", "3", "2"]


def test_what_is_being_read_never_goes_and_a_full_cache_says_so_once(remote, tmp_path, caplog):
    cache = room_for(tmp_path, 2)
    held = [remote.open(cache, 1), remote.open(cache, 2)]
    with caplog.at_level(logging.WARNING):
        assert remote.open(cache, 3) is None
        assert remote.open(cache, 4) is None
    assert [r.message for r in caplog.records] == [
        f"{cache.folder} is full (resources.cache.gigabytes is 0.00025): more shards are read over the"
        " network each time"
    ]
    assert len(list(cache.folder.glob("*.arrow"))) == 2
    held[0].close()
    assert remote.open(cache, 3) is not None


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_copy_is_fetched_anew(remote, tmp_path, damage):
    cache = room_for(tmp_path, 2)
    remote.open(cache, 1).close()
    (copy,) = cache.folder.glob("*.arrow")
    data = copy.read_bytes()
    copy.write_bytes(data[:-1] + (b"" if damage == "cut" else bytes([data[-1] ^ 1])))
    remote.open(cache, 1).close()
    assert remote.fetched() == ["1", "1"]


def test_a_source_that_is_not_what_was_written_is_an_error_and_leaves_nothing(remote, tmp_path):
    cache = room_for(tmp_path, 2)
    (tmp_path / "x").write_bytes(b"else" * (SIZE // 4))
    with pytest.raises(OSError, match=r"x: its content has changed since it was written"):
        cache.open(remote, "x", "0" * 64)
    assert not list(cache.folder.glob("*.arrow*"))


def test_what_a_killed_process_left_half_fetched_is_swept_and_fetched(remote, tmp_path):
    cache = room_for(tmp_path, 1)
    cache.folder.mkdir()
    (cache.folder / f"{'1' * 64}.arrow.part").write_bytes(bytes(SIZE))
    remote.open(cache, 1).close()
    assert len(list(cache.folder.glob("*.arrow*"))) == 1


def _use(remote, cache, order, done):
    for i in order:
        file = remote.open(cache, i)
        if file is not None:
            file.close()
    done.put(True)


def test_processes_that_want_the_same_shards_at_once_fetch_each_once(remote, tmp_path):
    cache, context = room_for(tmp_path, 8), multiprocessing.get_context("fork")
    done = context.Queue()
    orders = [np.random.default_rng(i).permutation(8).tolist() for i in range(4)]
    processes = [context.Process(target=_use, args=(remote, cache, order, done)) for order in orders]
    for process in processes:
        process.start()
    assert [done.get(timeout=60) for _ in processes] == [True] * 4
    assert sorted(remote.fetched()) == [str(i) for i in range(8)]


def test_threads_that_want_different_shards_at_once_all_get_theirs(remote, tmp_path):
    """Room is made by what lies in the folder, while other threads put files there."""
    cache = room_for(tmp_path, 400)
    with ThreadPoolExecutor(8) as threads:
        held = list(threads.map(lambda i: remote.open(cache, i), range(300)))
    for file in held:
        file.close()
    assert len(list(cache.folder.glob("*.arrow"))) == 300


def test_shards_too_many_for_the_cache_are_read_all_the_same(tmp_path, monkeypatch):
    layout, rng = Layout(16, "raw"), np.random.default_rng(0)
    pixels = {f"v{i}": rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8) for i in range(6)}
    store = Store(tmp_path / "shards")
    for number, (video, frames) in enumerate(pixels.items()):
        write_shard(store, number, layout, [(Entry(video=video, status="ok", num_frames=3), frames)])
    size = max(path.stat().st_size for path in (tmp_path / "shards").glob("*.arrow"))
    shards = Shards(tmp_path / "shards", ShardCache(tmp_path / "cache", 2.5 * size / 1e9))
    shards._store.is_local = False  # as if in an object store
    for _ in range(2):
        for video, frames in pixels.items():
            assert np.array_equal(shards.frames(video), frames)
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2
