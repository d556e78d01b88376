"""Videos that kill or hang their decoder cost themselves only. Attempts are processes here, repeated as
Ray repeats them.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps
from support import ROOT
from support.ingest import digests
from support.video import write_video

from pipelines.ingest.driver import ingest_settings
from pipelines.ingest.task import IngestSettings, decode_shard
from vopcore.config import read_config
from vopcore.config.sections import Video
from vopcore.shards import Layout, Moment, Shards, sidecars
from vopcore.storage import StorageError, Store
from vopcore.video.sample import SAMPLERS, uniform

ATTEMPT = '''
"""Decodes one shard with a sampler that does harm, by the number of frames."""
import os, signal, sys, time
import numpy as np
from vopcore.video.sample import SAMPLERS, uniform

def deadly(num_frames, fps, count):
    task = int(os.environ["TASK"])
    if num_frames == 7:
        os.kill(os.getpid(), signal.SIGSEGV)
    if num_frames == 9:
        time.sleep(3600)
    if num_frames == 11:  # as the memory monitor does: the task is killed, whoever holds the memory
        os.kill(task, signal.SIGKILL)
    if num_frames == 13:
        np.zeros(3 * 2**30, np.uint8)
    return uniform(num_frames, fps, count)

SAMPLERS["deadly"] = deadly  # the child process reads this file too

if __name__ == "__main__":
    os.environ["TASK"] = str(os.getpid())
    from pipelines.ingest.task import IngestSettings, decode_shard
    from vopcore.shards import Layout, Moment
    settings = IngestSettings(
        folder=sys.argv[1], layout=Layout(32, "raw"), sampler="deadly", stored_frames=4, time_limit=3.0
    )
    decode_shard(settings, 0, [Moment(path, path, None, None) for path in sys.argv[2:]])
'''


def attempt(tmp_path, paths) -> int:
    """One attempt at a shard of these videos; its exit code, negative for a signal."""
    script = tmp_path / "attempt.py"
    script.write_text(ATTEMPT)
    command = [sys.executable, str(script), str(tmp_path / "shards"), *paths]
    run = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, timeout=120)
    return run.returncode


def videos_of(tmp_path, lengths) -> list[str]:
    return [str(write_video(tmp_path / f"{i}.mp4", num_frames=n)) for i, n in enumerate(lengths)]


def test_videos_that_crash_or_hang_the_decoder_or_want_too_much_memory_fail_alone(tmp_path):
    paths = videos_of(tmp_path, [5, 7, 9, 13, 4])
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    paths.append(str(pipe))

    assert attempt(tmp_path, paths) == -11, "the first attempt dies of the first guilty video"
    assert sidecars(Store(tmp_path / "shards")) == []
    assert attempt(tmp_path, paths) == 0

    shards = Shards(tmp_path / "shards")
    errors = [shards.videos[path].error for path in paths]
    assert errors == [
        None,
        "the decoder crashed (signal 11)",
        "the decoder hung and was ended after 4.5 s",
        "decoding it needs more memory than there is",
        None,
        "not a video file but a named pipe",
    ]
    assert [len(shards.frames(path)) for path in paths] == [4, 0, 0, 0, 4, 0]


def test_a_task_that_is_killed_whoever_decodes_still_ends(tmp_path):
    paths = videos_of(tmp_path, [5, 11, 4])
    assert [attempt(tmp_path, paths) for _ in range(4)] == [-9, -9, -9, 0]
    shards = Shards(tmp_path / "shards")
    errors = [shards.videos[path].error for path in paths]
    assert errors == [None, "decoding it ended the whole task 2 times, perhaps for want of memory", None]
    assert shards.videos[paths[1]].source_size is None, "the next run tries it again"
    assert [len(shards.frames(path)) for path in paths] == [4, 0, 4]
    assert not Store(tmp_path / "shards").exists("000000.try")


def test_a_decoder_that_hangs_ends_its_process(tmp_path):
    assert attempt(tmp_path, videos_of(tmp_path, [9])) == 1
    assert Store(tmp_path / "shards").exists("000000.try")


def test_a_store_that_is_away_stops_the_shard_and_fails_no_video(tmp_path, monkeypatch):
    """Otherwise every video of a machine without a network would be a failed one."""

    def away(filesystem, path):
        raise StorageError("this machine cannot use s3://b: no route to host")

    monkeypatch.setattr("pipelines.ingest.task.source_facts", away)
    settings = IngestSettings(
        folder=str(tmp_path), layout=Layout(32, "raw"), sampler="uniform", stored_frames=4, time_limit=60
    )
    with pytest.raises(StorageError, match="no route to host"):
        decode_shard(settings, 0, [Moment("a", "/a", None, None)])
    assert sidecars(Store(tmp_path)) == []
    assert not list(tmp_path.glob("*.part"))


def test_an_entry_says_which_bytes_were_decoded(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=5)
    settings = IngestSettings(
        folder=str(tmp_path / "shards"),
        layout=Layout(32, "raw"),
        sampler="uniform",
        stored_frames=4,
        time_limit=60,
    )
    (entry,) = decode_shard(settings, 0, [Moment("a", str(path), None, None)])
    assert entry.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Shards(settings.folder).videos["a"] == entry


def test_several_sizes_are_stored_in_one_decode_as_each_would_be_alone(tmp_path, monkeypatch):
    num_decodes = 0

    def counting(num_frames, fps, count):
        nonlocal num_decodes
        num_decodes += 1
        return uniform(num_frames, fps, count)

    monkeypatch.setitem(SAMPLERS, "counting", counting)
    broken = tmp_path / "broken.mp4"
    broken.write_text("<html>404</html>")
    paths = [str(write_video(tmp_path / "a.mp4", num_frames=9)), str(broken)]
    moments = [Moment(path, path, None, None) for path in paths]

    def stored(size, home):
        settings = ingest_settings(str(tmp_path / home), Video(frames=4, size=size, sampler="counting"))
        decode_shard(settings, 0, moments)
        return [digests(place.folder) for place in settings.folders]

    together = stored((32, 48), "together")
    assert num_decodes == 1
    assert together == [*stored(32, "alone"), *stored(48, "alone")]
    assert stored((48, 32), "turned") == together[::-1]
    assert all(len(files) == 2 for files in together)


def test_a_shard_that_fails_in_one_size_is_there_in_none(tmp_path):
    settings = ingest_settings(str(tmp_path / "shards"), Video(frames=4, size=(32, 48)))
    path = str(write_video(tmp_path / "a.mp4", num_frames=9))
    first, second = settings.folders
    # What stands where the second size's sidecar should go makes the first one come too late as well.
    blocked = Store(second.folder).path("000000.json")
    Path(blocked).mkdir(parents=True)
    with pytest.raises(OSError, match=r"000000\.json"):
        decode_shard(settings, 0, [Moment(path, path, None, None)])
    assert sidecars(Store(first.folder)) == []
    assert not list(tmp_path.rglob("*.part"))


def test_frames_of_settings_that_asked_no_model_are_openais(tmp_path):
    settings = ingest_settings(str(tmp_path), Video())
    assert settings.layout == Layout(224, "raw", 95)
    assert (settings.resize, settings.interpolation) == ("shortest", "bicubic")
    named = Video(size=224, resize="shortest", interpolation="bicubic")
    assert ingest_settings(str(tmp_path), named) == settings, "and they go into the same folder"


@pytest.mark.parametrize(
    ("model", "kernel", "is_squashed"),
    [
        ("ViT-B-16-SigLIP", Image.Resampling.BICUBIC, True),
        ("PE-Core-B-16", Image.Resampling.BILINEAR, True),
        ("ViT-L-14-CLIPA", Image.Resampling.BILINEAR, True),
        ("MobileCLIP2-B", Image.Resampling.BILINEAR, False),
        ("ViT-B-32-quickgelu", Image.Resampling.BICUBIC, False),
    ],
)
def test_a_stored_frame_is_what_the_model_was_trained_on(tmp_path, model, kernel, is_squashed):
    path = write_video(tmp_path / "a.mp4", num_frames=3)
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"name: mine\noutput: {tmp_path}\ndata: {{dataset: folder, root: {tmp_path}}}\n"
        f"clip: {{model: {model}, pretrained: null, words: 16}}\n"
        "video: {frames: 1, size: 96}\nmethods: {zero_shot: {}}\n"
    )
    settings = ingest_settings(str(tmp_path / "shards"), read_config(config).video)
    decode_shard(settings, 0, [Moment("a", str(path), None, None)])
    stored = Shards(settings.folder).frames("a")[0]

    with av.open(str(path)) as container:
        picture = list(container.decode(video=0))[1].to_image()
    expected = picture.resize((96, 96), kernel) if is_squashed else ImageOps.fit(picture, (96, 96), kernel)
    difference = np.abs(stored.astype(int) - np.asarray(expected))
    assert difference.max() <= 3
    assert difference.mean() < 0.3
