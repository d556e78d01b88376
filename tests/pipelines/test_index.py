"""The command that indexes a folder: what is new, changed and gone; killed, locked, watched; in buckets."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import pyarrow.fs
import pytest
from support import ROOT
from support.bucket import make_bucket, s3_server
from support.cluster import Nodes, doing, end, until
from support.report import log_tuned, make_store
from support.tuned_model import MODEL, make
from support.video import write_video

from pipelines import index as cli
from pipelines import search as search_cli
from vopcore.index import Index, open_index
from vopcore.storage import ShardCache, open_uri

pytestmark = pytest.mark.usefixtures("short_lived_folder_of_ray")

WINDOWS = ["seconds=2", "every=1"]

# As a user's command, but with a segment for each video: what is written while it is killed is then seen.
WRITES_OFTEN = """
import sys
from pipelines.indexing import driver
driver.WRITE_EVERY = 0.0
from pipelines.index import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tuned model, as a run leaves it."""
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def index_here(own_ray, made, monkeypatch, capsys):
    """The command in this process and on one Ray for all tests, by default with the tuned model."""
    monkeypatch.chdir(ROOT)

    def run(videos: Path | str, index: Path | str, *words: str) -> subprocess.CompletedProcess:
        model = [] if any(word.startswith("model=") for word in words) else [f"model={made.folder}"]
        arguments = [str(videos), f"index={index}", *model, *WINDOWS, *words]
        code = cli.main(arguments)
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run


def write_videos(folder: Path, names: str) -> Path:
    """Videos of three to six seconds; the same name is always the same picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_video(folder / f"{name}.mp4", 75 + 25 * (ord(name) % 4), gop=5 + ord(name) % 7)
    return folder


def moments(index: Index) -> list[dict]:
    """Every row, in order of video and time, without what an engine numbers itself."""
    rows = [row for table in index.table.moments() for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (row["video"], row["start"]))


def frames(index: Index) -> dict[str, tuple[bytes, bytes]]:
    """Times and features of all frames of each video."""
    stored = {}
    for number, entry in enumerate(index.table.videos):
        times, features = index.table.frames_between(number, 0.0, entry.duration)
        stored[entry.video] = (times.tobytes(), features.numpy().tobytes())
    return stored


def assert_same(index: Path, other: Path) -> None:
    """Row by row and bit by bit, and each video as it is said to have ended."""
    ours = open_index(str(index))
    theirs = open_index(str(other))
    assert moments(ours) == moments(theirs)
    assert frames(ours) == frames(theirs)
    assert ours.table.videos == theirs.table.videos
    assert ours.table.failed == theirs.table.failed


def counts(output: str) -> list[int]:
    """Of the last line that counts: videos, new, changed, gone, failed."""
    found = re.findall(
        r"^([\d,]+) videos, .* \(([\d,]+) new, ([\d,]+) changed, ([\d,]+) gone, ([\d,]+) failed",
        output,
        re.M,
    )
    return [int(number.replace(",", "")) for number in found[-1]]


def test_new_changed_and_deleted_files_leave_what_a_fresh_index_has(index_here, tmp_path):
    videos = write_videos(tmp_path / "videos", "abcd")
    (videos / "deep/er").mkdir(parents=True)
    write_video(videos / "deep/er/a 'x' #1 <b>.webm", 60, codec="libvpx")
    index = tmp_path / "index"
    first = index_here(videos, index)
    assert first.returncode == 0, first.stderr
    assert counts(first.stdout) == [5, 5, 0, 0, 0]
    assert f'python pipelines/search.py {index} "' in first.stdout

    before = {path.name: path.stat().st_mtime_ns for path in index.glob("*.arrow")}
    again = index_here(videos, index)
    assert counts(again.stdout) == [5, 0, 0, 0, 0]
    assert {path.name: path.stat().st_mtime_ns for path in index.glob("*.arrow")} == before

    write_videos(videos, "ef")
    (videos / "a.mp4").unlink()
    (videos / "b.mp4").rename(videos / "deep/b.mp4")
    # Another picture of the same length and name, and one that only seems newer.
    write_video(videos / "c.mp4", 150)
    os.utime(videos / "d.mp4", (1, 1))
    changed = index_here(videos, index)
    assert counts(changed.stdout) == [6, 3, 2, 2, 0]

    fresh = tmp_path / "fresh"
    index_here(videos, fresh)
    assert_same(index, fresh)


def test_broken_files_are_listed_with_the_reason_until_they_are_repaired(index_here, tmp_path):
    videos = write_videos(tmp_path / "videos", "ab")
    whole = (videos / "b.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "page.mp4").write_text("<html>")
    (videos / "empty.mp4").touch()
    (videos / "link.mp4").symlink_to("/etc/passwd")
    index = tmp_path / "index"
    done = index_here(videos, index)
    assert done.returncode == 0, done.stderr
    assert counts(done.stdout) == [2, 5, 0, 0, 4]
    with (index / "failed.csv").open() as file:
        reasons = {row["video"]: row["error"] for row in csv.DictReader(file)}
    assert set(reasons) == {"cut.mp4", "page.mp4", "empty.mp4", "link.mp4"}
    assert "outside the folder" in reasons["link.mp4"]
    for video, reason in reasons.items():
        assert f"  {video}: {reason}" in done.stdout

    (videos / "cut.mp4").write_bytes(whole)
    repaired = index_here(videos, index)
    assert counts(repaired.stdout) == [3, 0, 1, 0, 3]
    assert {row["video"] for row in moments(open_index(str(index)))} == {"a.mp4", "b.mp4", "cut.mp4"}


def test_a_model_of_mlflow_by_its_run_and_by_its_alias_indexes_as_the_model_itself(
    index_here, made, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = make_store(tmp_path)
    run_id = log_tuned(store, made.folder)
    mlflow.set_tracking_uri(store.uri)
    version = mlflow.register_model(f"runs:/{run_id}/vop_p", "shapes").version
    store.client.set_registered_model_alias("shapes", "best", version)
    mlflow.set_tracking_uri(None)

    videos = write_videos(tmp_path / "videos", "ab")
    assert index_here(videos, tmp_path / "folder").returncode == 0
    of_run = index_here(videos, tmp_path / "run", f"model=runs:/{run_id}/vop_p", f"mlflow_uri={store.uri}")
    assert of_run.returncode == 0, of_run.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    of_alias = index_here(videos, tmp_path / "alias", "model=models:/shapes@best")
    assert of_alias.returncode == 0, of_alias.stderr
    assert_same(tmp_path / "run", tmp_path / "folder")
    assert_same(tmp_path / "alias", tmp_path / "folder")
    assert open_index(str(tmp_path / "run")).header.method == "vop_p"

    assert search_cli.main([str(tmp_path / "run"), "a red ball"]) == 0
    by_run = capsys.readouterr().out
    assert search_cli.main([str(tmp_path / "folder"), "a red ball"]) == 0
    assert by_run == capsys.readouterr().out
    assert "a.mp4" in by_run

    gone = index_here(videos, tmp_path / "gone", "model=models:/shapes@nobody", f"mlflow_uri={store.uri}")
    assert gone.returncode == 2
    assert "alias nobody not found" in gone.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "gone/index.json").exists()


def test_an_index_of_other_weights_windows_or_videos_is_refused_and_stays(index_here, tmp_path):
    videos = write_videos(tmp_path / "videos", "ab")
    index = tmp_path / "index"
    index_here(videos, index)
    before = moments(open_index(str(index)))

    plain = index_here(videos, index, f"model={MODEL}", "pretrained=null", "frames=4")
    assert plain.returncode == 2
    (line,) = plain.stderr.strip().splitlines()
    assert f"{index}: this index has method vop_p, now it is zero_shot; choose another folder" in line
    wider = index_here(videos, index, "seconds=3")
    assert "this index has seconds 2.0, now it is 3.0" in wider.stderr
    elsewhere = index_here(write_videos(tmp_path / "other", "c"), index)
    assert f"this index has root {videos}, now it is {tmp_path / 'other'}" in elsewhere.stderr
    assert moments(open_index(str(index))) == before


def start(videos: Path | str, index: Path | str, model: Path, log: Path, *words: str) -> subprocess.Popen:
    """The command in a process of its own, that writes each video by itself."""
    arguments = [sys.executable, "-c", WRITES_OFTEN, str(videos), f"index={index}", f"model={model}"]
    with log.open("w") as file:
        return subprocess.Popen([*arguments, *WINDOWS, *words], cwd=ROOT, stdout=file, stderr=file)


@pytest.mark.long
def test_killed_anywhere_and_started_again_each_moment_is_there_once(index_here, made, tmp_path):
    videos = write_videos(tmp_path / "videos", "abcdefghijkl")
    (videos / "page.mp4").write_text("<html>")
    index = tmp_path / "killed"

    def is_merging() -> bool:
        """Whether the segments of all videos are being written as one."""
        numbers = {int(path.name[:6]) for path in index.glob("0*.arrow")}
        return bool(numbers) and max(numbers) > len(list(videos.iterdir())) - 1

    moments_of_death = {
        "the index has a header": (index / "index.json").exists,
        "some videos are written": lambda: len(list(index.glob("*.videos.arrow"))) >= 3,
        "segments are joined": is_merging,
    }
    for what, happened in moments_of_death.items():
        process = start(videos, index, made.folder, tmp_path / "killed.log")
        until(lambda: happened() or process.poll() is not None, what)  # noqa: B023 - at once
        process.send_signal(signal.SIGKILL)
        process.wait()

    done = index_here(videos, index)
    assert done.returncode == 0, done.stderr
    whole = tmp_path / "whole"
    index_here(videos, whole)
    assert_same(index, whole)
    assert len(open_index(str(index)).table.videos) == 12
    # Nothing that a killed process has begun is left.
    leftovers = [path.name for path in index.iterdir() if not re.fullmatch(r"0\d+\.\w+\.arrow", path.name)]
    assert sorted(leftovers) == ["failed.csv", "index.json", "model"]


@pytest.mark.long
def test_watching_takes_in_a_new_file_and_holds_the_lock(index_here, made, tmp_path):
    videos = write_videos(tmp_path / "videos", "a")
    index = tmp_path / "index"
    log = tmp_path / "index.log"
    process = start(videos, index, made.folder, log, "watch_every=0.2", "--watch")
    try:
        until(lambda: "1 videos" in log.read_text() or process.poll() is not None, "the first index")
        assert process.poll() is None, log.read_text()

        refused = index_here(videos, index)
        assert refused.returncode == 2
        (line,) = refused.stderr.strip().splitlines()
        assert f"{index} is being written by " in line
        assert f"process {process.pid} " in line

        # As a camera or a browser writes: elsewhere first, and whole at once.
        shutil.move(write_videos(tmp_path / "elsewhere", "b") / "b.mp4", videos / "b.mp4")
        until(lambda: "2 videos" in log.read_text() or process.poll() is not None, "the new file")
        assert "(1 new, 0 changed, 0 gone" in log.read_text()
        shutil.move(videos, tmp_path / "away")
        until(lambda: "no such folder" in log.read_text(), "a folder that is away")
        shutil.move(tmp_path / "away", videos)
        (videos / "a.mp4").unlink()
        until(lambda: "1 gone" in log.read_text() or process.poll() is not None, "a file that goes")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    assert process.returncode == 130, log.read_text()

    after = index_here(videos, index)
    assert counts(after.stdout) == [1, 0, 0, 0, 0]


@pytest.mark.cluster
def test_a_bucket_is_indexed_into_a_bucket_by_three_workers(made, tmp_path):
    videos = write_videos(tmp_path / "videos", "abcdefghijkl")
    log = tmp_path / "local.log"
    assert start(videos, tmp_path / "local", made.folder, log).wait(300) == 0, log.read_text()

    with (
        s3_server() as options,
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", temporary)  # for the copies of a bucket's model
        make_bucket("videos", options)
        make_bucket("indexes", options)
        # A name that an address parsed as a whole would cut.
        filesystem, folder = open_uri(f"s3://videos/cam #1 50%20{options}")
        filesystem.create_dir(folder)
        pyarrow.fs.copy_files(str(videos), folder, destination_filesystem=filesystem)
        uri = f"s3://indexes/a{options}"

        nodes = Nodes(temporary)
        workers = [nodes.add(num_cpus=2) for _ in range(3)]
        patch.setenv("RAY_ADDRESS", nodes.address)
        log = tmp_path / "bucket.log"
        process = start(f"s3://videos/cam #1 50%20{options}", uri, made.folder, log)
        seen = set()

        def all_have_worked() -> bool:
            seen.update(place for place, node in enumerate(workers) if doing(node, "MapBatches"))
            return len(seen) == 3 or process.poll() is not None

        try:
            until(all_have_worked, "all three workers")
            assert process.wait(300) == 0, log.read_text()
        finally:
            end(process)
            nodes.end()
        assert len(seen) == 3

        # The same moments as of the files themselves, on one machine.
        index = open_index(uri, ShardCache(tmp_path / "cache"))
        local = open_index(str(tmp_path / "local"))
        assert moments(index) == moments(local)
        assert frames(index) == frames(local)
        assert [entry.status for entry in index.table.videos] == ["ok"] * 12
