"""The index says what the sidecars say, whatever happened to either."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ROOT
from support.late_files import Together, late_shards

from vopcore.shards import Entry, Layout, Shards, read_index, save_index, sidecars, write_shard
from vopcore.storage import ShardCache, Store

LAYOUT = Layout(8, "raw")


def video(name, num=2, seed=0, **facts):
    pixels = np.random.default_rng(seed).integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
    return Entry(video=name, status="ok", num_frames=num, times=[0.5] * num, **facts), pixels


def expected(store):
    """The entries by reading every sidecar: of two, the later shard counts."""
    return {entry.video: entry for sidecar in sidecars(store) for entry in sidecar.entries}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "shards")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_index_equals_the_sidecars_after_any_history(tmp_path_factory, data):
    """Shards are added under any free number, lost, and indexed in between or not."""
    store = Store(tmp_path_factory.mktemp("history") / "shards")
    names = st.lists(st.sampled_from(["a", "b", "ü", "z/1.mp4", "Z"]), unique=True, min_size=1)
    for step in range(data.draw(st.integers(1, 6))):
        number = data.draw(st.integers(0, 5))
        if data.draw(st.booleans()):
            store.delete(f"{number:06d}.json")
        if not store.exists(f"{number:06d}.json"):
            videos = [video(name, num=1 + step, seed=step) for name in data.draw(names)]
            write_shard(store, number, LAYOUT, videos)
        if data.draw(st.booleans()):
            save_index(store, read_index(store))
    shards = Shards(store.folder)
    assert dict(shards.videos) == expected(store)
    assert list(shards.videos) == sorted(expected(store))
    for name, entry in expected(store).items():
        assert shards.frames(name).shape[0] == entry.num_frames


def test_a_saved_index_is_read_without_any_sidecar(store, monkeypatch):
    for number in range(3):
        write_shard(store, number, LAYOUT, [video(f"v{number}", source_size=5, source_mtime=1.5)])
    save_index(store, read_index(store))
    before = dict(Shards(store.folder).videos)

    read = Store.read
    monkeypatch.setattr(
        Store, "read", lambda self, name: pytest.fail(name) if name[:6].isdigit() else read(self, name)
    )
    assert dict(Shards(store.folder).videos) == before
    assert read_index(store).is_saved


@pytest.mark.parametrize("damage", ["cut", "gone", "empty current", "other columns"])
def test_an_index_that_cannot_be_read_is_made_anew(store, damage, tmp_path):
    write_shard(store, 0, LAYOUT, [video("a")])
    save_index(store, read_index(store))
    (file,) = (tmp_path / "shards" / "index").glob("*.arrow")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "gone":
        file.unlink()
    elif damage == "empty current":
        (file.parent / "current.json").write_text("")
    else:
        table = pa.table({"video": ["a"]})
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert list(Shards(store.folder).videos) == ["a"]


def test_a_sidecar_of_an_older_version_is_read(store, tmp_path):
    write_shard(store, 0, LAYOUT, [video("a", source_size=1)])
    sidecar = tmp_path / "shards" / "000000.json"
    content = json.loads(sidecar.read_text())
    for entry in content["videos"]:
        del entry["content"], entry["source_sha256"]
    sidecar.write_text(json.dumps(content))
    shards = Shards(store.folder)
    assert shards.videos["a"].content is None
    assert shards.digest() != Shards(tmp_path / "nothing").digest()


def test_the_digest_tells_frames_apart_and_not_where_they_lie(tmp_path):
    def digest(*shards, videos=None):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for number, entries in enumerate(shards):
            write_shard(Store(folder), number, LAYOUT, entries)
        return Shards(folder).digest(videos)

    a, b = video("a", seed=1), video("b", seed=2)
    whole = digest([a, b])
    assert digest([b], [a]) == whole, "cut into other shards"
    later = dataclasses.replace(a[0], source_mtime=9.0)
    assert digest([(later, a[1]), b]) == whole, "copied, with the same frames"
    assert digest([video("a", seed=3), b]) != whole, "other frames"
    assert digest([a]) != whole
    assert digest([a, b], videos=["b", "a", "a"]) == whole
    assert digest([a, b], videos=["a", "gone"]) == digest([a]) != digest([a, b], videos=["b"])
    failed = Entry(video="b", status="failed", error="x")
    assert digest([a, (failed, None)]) != whole


def test_what_is_decoded_is_known_without_making_entries(store):
    failed = Entry(video="c", status="failed", error="x")
    write_shard(store, 0, LAYOUT, [video("b"), (failed, None), video("a")])
    assert Shards(store.folder).decoded().to_pylist() == ["a", "b"]


class SlowReader:
    """A reader whose reads end only when eight are under way."""

    def __init__(self, reader, barrier):
        self._reader, self._barrier = reader, barrier

    def get_batch(self, row):
        self._barrier.wait(timeout=30)
        return self._reader.get_batch(row)


@pytest.mark.parametrize("same", [True, False])
def test_eight_threads_read_at_once(store, monkeypatch, same):
    """From one shard and from eight: each read waits until all eight are under way."""
    for number in range(8):
        write_shard(store, number, LAYOUT, [video(f"v{number}", seed=number)])
    shards = Shards(store.folder)
    barrier = threading.Barrier(8)
    open_file = pa.ipc.open_file
    monkeypatch.setattr(pa.ipc, "open_file", lambda file: SlowReader(open_file(file), barrier))
    numbers = [0] * 8 if same else list(range(8))
    sums = {}

    def read(thread, number):
        sums[thread] = int(shards.frames(f"v{number}").sum())

    threads = [threading.Thread(target=read, args=pair) for pair in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == {i: int(video("", seed=n)[1].sum()) for i, n in enumerate(numbers)}


@pytest.mark.parametrize("same", [True, False])
def test_reads_of_a_bucket_that_answers_late_overlap(store, tmp_path, same):
    """No read is answered before eight are under way."""
    for number in range(8):
        write_shard(store, number, LAYOUT, [video(f"v{number}", seed=number)])
    together = Together(8)
    shards = late_shards(store.folder, tmp_path / "cache", together)

    numbers = [0] * 8 if same else list(range(8))
    with ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(lambda number: shards.frames(f"v{number}"), numbers))
    for number, found in zip(numbers, frames, strict=True):
        assert np.array_equal(found, video("", seed=number)[1])
    assert together.has_happened.is_set()


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np
from vopcore.shards import Shards
from vopcore.storage import ShardCache
shards = Shards(sys.argv[1], ShardCache(sys.argv[2]))
shards._store.is_local = sys.argv[3] == "local"
from vopcore.shards.readers import ArrowFiles
shards._files = ArrowFiles(shards._store, shards._cache)
total = sum(int(shards.frames(video).sum()) for _ in range(2) for video in shards.videos)
print(total)
"""


@pytest.mark.parametrize("place", ["local", "cached"])
def test_more_shards_than_a_process_may_open_files(store, tmp_path, place):
    total = 0
    for number in range(300):
        entry, pixels = video(f"v{number}", num=1, seed=number)
        write_shard(store, number, LAYOUT, [(entry, pixels)])
        total += 2 * int(pixels.sum())
    command = [sys.executable, "-c", MANY, store.folder, str(tmp_path / "cache"), place]
    result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert result.stdout.strip() == str(total), result.stderr[-2000:]


def test_a_prefetched_shard_is_in_the_cache_before_it_is_read(store, tmp_path):
    for number in range(3):
        write_shard(store, number, LAYOUT, [video(f"v{number}")])
    cache = ShardCache(tmp_path / "cache")
    shards = Shards(store.folder, cache)
    shards._store.is_local = False  # as if in an object store
    shards.prefetch(["v0", "v2", "v0"])
    deadline = time.monotonic() + 30
    while len(list(cache.folder.glob("*.arrow"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(cache.folder.glob("*.arrow"))) == 2
    assert shards.frames("v0").shape == (2, 8, 8, 3)
