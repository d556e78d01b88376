"""Ingest on a real Ray: every video once, resumed for free, failures counted."""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from support import ROOT
from support.ingest import annotations, committed_videos, digests
from support.video import number_in, write_video

from pipelines.ingest.driver import Ingested, TooManyFailedError, ingest
from pipelines.ingest.task import DiskFullError
from vopcore.config.sections import Video
from vopcore.shards import Layout, Shards, default_storage, verify
from vopcore.storage import Store
from vopcore.video import decode

pytestmark = pytest.mark.usefixtures("own_ray")

SETTINGS = Video(stored_frames=6, size=32, max_failed=0.2)


def with_(**changes) -> Video:
    """SETTINGS with some of them changed."""
    return SETTINGS.model_copy(update=changes)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {f"v{i:02d}": write_video(folder / f"{i}.mp4", num_frames=20 + i, gop=6) for i in range(24)}


@pytest.fixture(scope="module")
def many(videos) -> dict[str, Path]:
    """Enough of them that something can be killed while they are decoded."""
    return {f"{video}-{copy}": path for video, path in videos.items() for copy in range(15)}


@pytest.fixture(scope="module")
def undisturbed(own_ray, many, tmp_path_factory) -> Ingested:
    """All of `many`, and nothing was killed."""
    return ingest(annotations(many), str(tmp_path_factory.mktemp("undisturbed")), SETTINGS)


def test_every_video_ends_as_ok_damaged_or_failed_with_its_reason(tmp_path, videos):
    page = tmp_path / "page.mp4"
    page.write_text("<html>404</html>")
    cut = tmp_path / "cut.flv"
    whole = write_video(tmp_path / "whole.flv", num_frames=100, codec="flv", b_frames=0).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    empty = tmp_path / "empty.mp4"
    empty.touch()
    odd = {"page": page, "cut": cut, "empty": empty, "gone": tmp_path / "gone.mp4", "none": None}
    result = ingest(annotations(videos | odd, captions=3), str(tmp_path / "shards"), SETTINGS)
    assert (result.videos, result.ok, result.damaged, result.failed, result.missing) == (29, 24, 1, 3, 1)
    assert result.decoded_now == 28
    assert committed_videos(result.folder) == sorted((videos | odd).keys() - {"none"})
    with (Path(result.folder) / "failed.csv").open() as file:
        listed = {row["video"]: row for row in csv.DictReader(file)}
    assert {video: row["status"] for video, row in listed.items()} == dict.fromkeys(odd, "failed") | {
        "cut": "damaged",
        "none": "missing",
    }
    assert "not a readable video file" in listed["page"]["error"]
    assert listed["empty"]["error"] == "the file is empty"
    assert "no such file" in listed["gone"]["error"]
    assert "no file was found" in listed["none"]["error"]
    shards = Shards(result.folder)
    for video, path in videos.items():
        assert np.array_equal(shards.frames(video), decode(path, count=6, size=32).pixels)
    assert verify(result.folder) == []
    assert not list(Path(result.folder).glob("*.try"))


def test_only_what_is_new_or_changed_is_decoded(tmp_path, videos):
    root = str(tmp_path / "shards")
    some = dict(list(videos.items())[:10])
    broken = tmp_path / "broken.mp4"
    broken.write_text("not yet")
    first = ingest(annotations(some | {"broken": broken}), root, SETTINGS)
    assert (first.decoded_now, first.failed) == (11, 1)
    before = digests(first.folder)
    assert ingest(annotations(some | {"broken": broken}), root, SETTINGS).decoded_now == 0
    assert ingest(annotations(some | {"broken": broken}, captions=4), root, SETTINGS).decoded_now == 0
    assert digests(first.folder) == before

    assert ingest(annotations(videos | {"broken": broken}), root, SETTINGS).decoded_now == 14
    shutil.copy(videos["v00"], broken)
    repaired = ingest(annotations(videos | {"broken": broken}), root, SETTINGS)
    assert (repaired.decoded_now, repaired.ok, repaired.failed) == (1, 25, 0)
    assert len(Shards(repaired.folder).frames("broken")) == 6
    assert {name: digests(first.folder)[name] for name in before} == before, "old shards are left alone"

    other = ingest(annotations(some), root, with_(stored_frames=3))
    assert other.folder != first.folder
    assert other.decoded_now == 10


def test_a_replaced_file_is_decoded_anew_and_a_copied_one_is_not(tmp_path, videos):
    """A data set that was moved has new times and the same content."""
    file = tmp_path / "a.mp4"
    shutil.copy(videos["v03"], file)
    root = str(tmp_path / "shards")
    first = ingest(annotations({"a": file}), root, SETTINGS)
    before = Shards(first.folder).digest()

    shutil.copy(videos["v03"], file)
    os.utime(file, (1, 1))
    assert ingest(annotations({"a": file}), root, SETTINGS).decoded_now == 0
    moved = tmp_path / "moved.mp4"
    file.rename(moved)
    assert ingest(annotations({"a": moved}), root, SETTINGS).decoded_now == 0
    assert Shards(first.folder).digest() == before
    assert Shards(first.folder).videos["a"].source_mtime == 1, "and is not compared again"

    # of the same size: the last bytes of an MP4's index, then another time
    content = bytearray(moved.read_bytes())
    content[-1] ^= 1
    moved.write_bytes(content)
    os.utime(moved, (2, 2))
    assert ingest(annotations({"a": moved}), root, SETTINGS).decoded_now == 1


def test_files_that_are_missing_are_known_before_anything_is_decoded(tmp_path, videos):
    some = dict(list(videos.items())[:3]) | {"gone": None}
    with pytest.raises(TooManyFailedError) as caught:
        ingest(annotations(some), str(tmp_path / "shards"), SETTINGS)
    first, hint = str(caught.value).splitlines()
    assert first == (
        "1 of 4 videos have no file (train 1 of 4), more than max_failed (20.00%) allows; the first is 'gone'"
    )
    assert "data.missing=allow" in hint
    assert not (tmp_path / "shards").exists()
    result = ingest(annotations(some), str(tmp_path / "shards"), with_(max_failed=0.25))
    assert (result.ok, result.missing, result.decoded_now) == (3, 1, 3)


def test_files_that_may_be_missing_do_not_count_among_those_that_failed(tmp_path, videos):
    page = tmp_path / "page.mp4"
    page.write_text("<html>")
    some = dict(list(videos.items())[:4]) | {"page": page} | {f"gone{number}": None for number in range(5)}
    result = ingest(annotations(some), str(tmp_path / "shards"), SETTINGS, allow_missing=True)
    assert (result.ok, result.failed, result.missing, result.decoded_now) == (4, 1, 5, 5)
    with pytest.raises(TooManyFailedError, match=r"^1 of 10 videos failed"):
        ingest(annotations(some), str(tmp_path / "shards"), with_(max_failed=0.1), allow_missing=True)


def test_a_second_ingest_waits_for_the_first_and_decodes_nothing_twice(tmp_path, videos):
    some = annotations(dict(list(videos.items())[:6]))
    results = {}

    def run(number):
        results[number] = ingest(some, str(tmp_path / "shards"), SETTINGS)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.decoded_now for result in results.values()) == [0, 6]
    assert committed_videos(results[0].folder) == sorted(some["video"].to_pylist())
    assert verify(results[0].folder) == []


def test_a_counter_that_dies_ends_no_ingest(tmp_path, videos, monkeypatch):
    def beside_driver(kind):
        counter = kind.remote()
        ray.kill(counter)
        return counter

    monkeypatch.setattr("pipelines.ingest.progress.beside_driver", beside_driver)
    some = annotations(dict(list(videos.items())[:4]))
    assert ingest(some, str(tmp_path / "shards"), SETTINGS).ok == 4


def test_too_many_failures_stop_the_run_with_a_summary(tmp_path, videos):
    pages = {}
    for i in range(3):
        pages[f"page{i}"] = tmp_path / f"page{i}.mp4"
        pages[f"page{i}"].write_text("<html>")
    some = dict(list(videos.items())[:17]) | pages
    with pytest.raises(TooManyFailedError) as caught:
        ingest(annotations(some), str(tmp_path / "shards"), with_(max_failed=0.1))
    assert "of 20 videos failed, more than max_failed (10.00%) allows" in str(caught.value)
    assert "not a readable video file" in str(caught.value)
    assert "failed.csv" in str(caught.value)
    allowed = ingest(annotations(some), str(tmp_path / "shards"), with_(max_failed=0.15))
    assert allowed.failed == 3


def test_a_disk_too_small_is_refused_before_anything_is_decoded(tmp_path, videos):
    with pytest.raises(ValueError, match=r"needs about \d+\.\d GB for .* frames and has .* GB free"):
        ingest(annotations(videos), str(tmp_path / "shards"), Video(stored_frames=10**8, size=224))
    assert not (tmp_path / "shards").exists()


def test_an_attempt_that_died_is_repeated_in_a_child_process_with_the_same_result(tmp_path, videos):
    some = annotations(dict(list(videos.items())[:4]))
    undisturbed = ingest(some, str(tmp_path / "one"), SETTINGS)
    again = Path(tmp_path / "two" / Path(undisturbed.folder).name)
    again.mkdir(parents=True)
    for name in digests(undisturbed.folder):
        if name.endswith(".json"):
            (again / name.replace(".json", ".try")).touch()
    resumed = ingest(some, str(tmp_path / "two"), SETTINGS)
    assert resumed.folder == str(again)
    assert digests(resumed.folder) == digests(undisturbed.folder)
    assert not list(again.glob("*.try"))


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path, many, undisturbed):
    killed = []
    folder = tmp_path / "two" / Path(undisturbed.folder).name

    done = threading.Event()

    def kill_a_worker():
        while not killed and not done.wait(0.005):
            if list(folder.glob("*.try")) and (victim := first_decoding_worker()) is not None:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    result = ingest(annotations(many), str(tmp_path / "two"), SETTINGS)
    done.set()
    killer.join()
    assert killed
    assert (result.ok, result.failed) == (360, 0)
    assert committed_videos(result.folder) == sorted(many)
    assert digests(result.folder) == digests(undisturbed.folder)


def first_decoding_worker() -> int | None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "MapBatches" in " ".join(process.cmdline()):
                return process.pid
    return None


DRIVER = """
import os, sys, tempfile, ray
sys.path[:0] = [{root!r}, {tests!r}]
from support.ingest import annotations
from pipelines.ingest.driver import ingest
from vopcore.config.sections import Video
ray.init(_temp_dir=sys.argv[1], include_dashboard=False, num_cpus=2,
         runtime_env={{"env_vars": {{"PYTHONPATH": {root!r}, "OMP_NUM_THREADS": "1"}}}})
many = dict(line.split("\\t") for line in open(sys.argv[2]).read().splitlines())
ingest(annotations(many), sys.argv[3], Video(stored_frames=6, size=32, max_failed=0.2))
"""


def test_a_killed_driver_loses_and_doubles_nothing(tmp_path, many, undisturbed):
    folder = tmp_path / "two" / Path(undisturbed.folder).name
    listing = tmp_path / "videos.tsv"
    listing.write_text("\n".join(f"{video}\t{path}" for video, path in many.items()))
    script = DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        command = [sys.executable, "-c", script, ray_folder, str(listing), str(tmp_path / "two")]
        driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while driver.poll() is None and len(list(folder.glob("*.json"))) < 2:
            time.sleep(0.01)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
        for orphan in family:  # and with the driver its whole machine
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()
        psutil.wait_procs(family)
    done = len(committed_videos(str(folder)))
    assert 0 < done < len(many)
    result = ingest(annotations(many), str(tmp_path / "two"), SETTINGS)
    assert result.decoded_now == len(many) - done
    assert not list(folder.glob("*.try")) + list(folder.glob(".*.part"))
    assert committed_videos(result.folder) == sorted(many)
    assert digests(result.folder) == digests(undisturbed.folder)


def test_a_disk_that_fills_up_stops_the_run_and_room_resumes_it(tmp_path, videos):
    disk = tmp_path / "disk"
    disk.mkdir()
    small = ["-t", "tmpfs", "-o", "size=50m,nr_inodes=14", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(["mount", *small], capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        with pytest.raises(
            DiskFullError, match=r"no space left in .*; make room and run the same command again"
        ):
            ingest(annotations(videos), str(disk), SETTINGS)
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", str(disk)], check=True)
        result = ingest(annotations(videos), str(disk), SETTINGS)
        assert 0 < result.decoded_now < len(videos)
        assert committed_videos(result.folder) == sorted(videos)
        assert verify(result.folder) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_jpeg_is_chosen_where_a_video_is_large(tmp_path, videos):
    assert default_storage(12, 224) == default_storage(32, 224) == "raw"
    assert default_storage(64, 224) == "jpeg"
    some = dict(list(videos.items())[:2])
    result = ingest(
        annotations(some), str(tmp_path), Video(stored_frames=20, size=64, storage="jpeg", quality=90)
    )
    stored, exact = Shards(result.folder).frames("v01"), decode(some["v01"], count=20, size=64).pixels
    assert 0 < np.abs(stored.astype(int) - exact).mean() < 3
    assert [number_in(frame) for frame in stored] == [number_in(frame) for frame in exact]
    assert Store(result.folder).names()
    assert Layout(64, "jpeg", 90).bytes_per_frame() < Layout(64, "raw").bytes_per_frame()


def test_one_ingest_stores_several_sizes_and_a_run_of_each_finds_its_own(tmp_path, videos):
    some = annotations(dict(list(videos.items())[:6]))
    both = ingest(some, str(tmp_path / "both"), with_(size=(32, 48)))
    assert (both.ok, both.decoded_now) == (6, 6)
    for size in (32, 48):
        alone = ingest(some, str(tmp_path / "alone"), with_(size=size))
        again = ingest(some, str(tmp_path / "both"), with_(size=size))
        assert (alone.decoded_now, again.decoded_now) == (6, 0)
        assert verify(again.folder) == []
        stored, wanted = Shards(again.folder), Shards(alone.folder)
        assert stored.digest(list(videos)[:6]) == wanted.digest(list(videos)[:6])
        assert stored.frames("v03").shape == (6, size, size, 3)
    assert ingest(some, str(tmp_path / "both"), with_(size=(48, 32))).decoded_now == 0


def test_of_several_sizes_only_what_one_of_them_lacks_is_decoded(tmp_path, videos):
    some = annotations(dict(list(videos.items())[:6]))
    small = ingest(some, str(tmp_path), with_(size=32))
    before = digests(small.folder)
    both = ingest(some, str(tmp_path), with_(size=(48, 32)))
    assert both.decoded_now == 6
    assert digests(small.folder) == before, "the other size is not written again"

    # As a kill between the two leaves it: one size has the shard, the other has not.
    gone = sorted(Path(both.folder).glob("*.json"))[1]
    lost = json.loads(gone.read_text())["rows"]
    gone.unlink()
    mended = ingest(some, str(tmp_path), with_(size=(48, 32)))
    assert mended.decoded_now == lost < 6
    assert committed_videos(mended.folder) == committed_videos(small.folder)
    assert digests(small.folder) == before
    assert verify(mended.folder) == []


def test_a_video_that_fails_is_listed_beside_the_shards_of_every_size(tmp_path, videos):
    page = tmp_path / "page.mp4"
    page.write_text("<html>404</html>")
    some = dict(list(videos.items())[:5]) | {"page": page}
    result = ingest(annotations(some), str(tmp_path / "shards"), with_(size=(32, 48)))
    assert (result.ok, result.failed) == (5, 1)
    lists = list((tmp_path / "shards").rglob("failed.csv"))
    assert len(lists) == 2
    assert all("page" in path.read_text() for path in lists)
