"""Shards: what is written is what is read, whole or not at all."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pytest

from vopcore.shards import Entry, Layout, Shards, folder_name, sidecars, verify, write_shard
from vopcore.storage import Store

SIZE = 32


def smooth_frames(num, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num, SIZE // 8, SIZE // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def video(name, num, seed=0, **more):
    entry = Entry(video=name, status="ok", num_frames=num, times=[i / 2 for i in range(num)], **more)
    return entry, smooth_frames(num, seed)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shards"


@pytest.mark.parametrize(("storage", "tolerance"), [("raw", 0), ("jpeg", 1.0)])
def test_frames_and_facts_come_back_as_they_were(folder, storage, tolerance):
    known = {
        "start": 1.0,
        "end": 2.5,
        "width": 320,
        "height": 240,
        "fps": 29.97,
        "duration": 9.5,
        "codec": "h264",
    }
    written = [video("a", 5, 1, source_size=10**10, source_mtime=1.5, **known), video("ü/b.mp4", 2, 2)]
    failed = Entry(video="c", status="failed", error="no video stream, only audio")
    layout = Layout(SIZE, storage)
    write_shard(Store(folder), 0, layout, [*written, (failed, None)])
    shards = pickle.loads(pickle.dumps(Shards(folder)))
    stored = [replace(entry, content=sha256(pixels.tobytes()).hexdigest()[:16]) for entry, pixels in written]
    assert shards.videos == {entry.video: entry for entry in [*stored, failed]}
    for entry, pixels in written:
        read = shards.frames(entry.video).astype(int)
        assert read.shape == pixels.shape
        assert np.abs(read - pixels).mean() <= tolerance
    assert np.array_equal(shards.frames("a", [3, 1]), shards.frames("a")[[3, 1]])
    assert shards.frames("c").shape == (0, SIZE, SIZE, 3)
    assert verify(folder) == []
    with pytest.raises(KeyError):
        shards.frames("nobody")


def test_shards_of_another_format_are_refused_and_those_that_do_not_say_are_read(folder):
    write_shard(Store(folder), 7, Layout(SIZE, "raw"), [video("a", 5)])
    sidecar = folder / "000007.json"
    content = json.loads(sidecar.read_text())
    assert content.pop("format") == 1
    sidecar.write_text(json.dumps(content))
    assert Shards(folder).frames("a").shape[0] == 5
    sidecar.write_text(json.dumps(content | {"format": 2}))
    for read in (lambda: Shards(folder).videos, lambda: sidecars(Store(folder))):
        with pytest.raises(ValueError, match=r"^shard 000007 has format 2, and this program reads 1: "):
            read()


def test_raw_frames_are_a_view_of_the_file(folder):
    write_shard(Store(folder), 0, Layout(SIZE, "raw"), [video("a", 5)])
    shards = Shards(folder)
    before = pa.total_allocated_bytes()
    frames = shards.frames("a")
    assert pa.total_allocated_bytes() == before
    assert not frames.flags.owndata
    assert not frames.flags.writeable


def test_an_arrow_file_says_by_itself_what_it_holds(folder):
    write_shard(Store(folder), 3, Layout(SIZE, "raw"), [video("a", 5), video("b", 4)])
    table = pa.ipc.open_file(str(folder / "000003.arrow")).read_all()
    assert table.column("video").to_pylist() == ["a", "b"]
    frames = table.column("frames").chunk(1).values.to_numpy_ndarray()
    assert np.array_equal(frames, smooth_frames(4, 0))


def test_jpeg_is_4_4_4_and_far_smaller(folder):
    frames = smooth_frames(8, 0)
    for storage in ("raw", "jpeg"):
        write_shard(Store(folder / storage), 0, Layout(SIZE, storage), [video("a", 8)])
    sizes = {s: (folder / s / "000000.arrow").stat().st_size for s in ("raw", "jpeg")}
    assert sizes["jpeg"] < sizes["raw"] / 1.5
    read = Shards(folder / "jpeg").frames("a").astype(int)
    assert np.abs(read - frames).max() < 12, "4:2:0 smears colour over the edges of the tiles"


def test_the_later_shard_counts_for_a_video_decoded_again(folder):
    store, layout = Store(folder), Layout(SIZE, "raw")
    write_shard(store, 0, layout, [(Entry(video="a", status="failed", error="empty"), None), video("b", 1)])
    write_shard(store, 1, layout, [video("a", 2)])
    assert {name: entry.num_frames for name, entry in Shards(folder).videos.items()} == {"a": 2, "b": 1}


def test_a_shard_without_its_sidecar_does_not_count(folder):
    store, layout = Store(folder), Layout(SIZE, "raw")
    write_shard(store, 0, layout, [video("a", 2)])
    write_shard(store, 1, layout, [video("b", 2)])
    (folder / "000001.json").unlink()
    assert list(Shards(folder).videos) == ["a"]
    assert verify(folder) == []


def test_an_error_while_writing_leaves_nothing_behind(folder):
    def videos():
        yield video("a", 2)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(Store(folder), 0, Layout(SIZE, "raw"), videos())
    assert list(folder.iterdir()) == []


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "content has changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "bytes, was written with"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_verify_names_the_shard_that_was_harmed(folder, harm, said):
    for number in range(2):
        write_shard(Store(folder), number, Layout(SIZE, "raw"), [video(f"v{number}", 3)])
    harm(folder / "000001.arrow")
    faults = verify(folder)
    assert len(faults) == 1
    assert "000001.arrow: " in faults[0]
    assert said in faults[0]


def test_verify_counts_rows_against_the_sidecar(folder):
    write_shard(Store(folder), 0, Layout(SIZE, "raw"), [video("a", 3), video("b", 3)])
    said = json.loads((folder / "000000.json").read_text())
    said["videos"].pop()
    (folder / "000000.json").write_text(json.dumps(said))
    assert "holds 2 videos" in verify(folder)[0]


def test_many_threads_read_one_reader(folder):
    videos = [video(f"v{i}", 3, seed=i) for i in range(40)]
    write_shard(Store(folder), 0, Layout(SIZE, "raw"), videos)
    shards = Shards(folder)
    names = [entry.video for entry, _ in videos] * 20
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda name: int(shards.frames(name).sum()), names))
    assert read == [int(pixels.sum()) for _, pixels in videos] * 20


def test_the_same_videos_give_the_same_bytes(folder):
    for place in ("one", "two"):
        write_shard(Store(folder / place), 0, Layout(SIZE, "jpeg"), [video("a", 3), video("b", 2)])
    for name in ("000000.arrow", "000000.json"):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()


def test_a_folder_is_named_by_all_that_would_change_a_pixel():
    def name(
        sampler="uniform",
        stored=12,
        storage="raw",
        size=224,
        quality=95,
        resize="shortest",
        interpolation="bicubic",
        version=1,
    ):
        return folder_name(
            sampler=sampler,
            stored_frames=stored,
            layout=Layout(size, storage, quality),
            resize=resize,
            interpolation=interpolation,
            decoder_version=version,
        )

    others = [name("segment"), name(stored=24), name(storage="jpeg"), name(size=336), name(version=2)]
    others += [name(storage="jpeg", quality=90), name(resize="squash"), name(interpolation="bilinear")]
    assert len({name(), *others}) == 9
    assert name() == name(quality=90), "raw frames have no quality"
    assert name() == "uniform-12x224-raw-a4100333", "frames that are already stored keep their folder"
    assert name(resize="squash").startswith("uniform-12x224-squash-bicubic-raw-")


def test_an_unknown_storage_is_refused():
    with pytest.raises(ValueError, match="'png' is unknown; it is raw or jpeg"):
        Layout(224, "png")


def test_a_folder_that_is_not_there_holds_nothing(folder):
    assert sidecars(Store(folder)) == []
    assert Store(folder).free_bytes() > 0
