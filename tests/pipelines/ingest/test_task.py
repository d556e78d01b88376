"""Videos that kill or hang their decoder cost themselves only. Attempts are processes here, repeated as
Ray repeats them.
"""

import subprocess
import sys

from support import ROOT
from support.video import write_video

from vopcore.shards import Shards, sidecars
from vopcore.storage import Store

ATTEMPT = '''
"""Decodes one shard with a sampler that crashes on videos of 7 frames and hangs on those of 9."""
import os, signal, sys, time
from vopcore.video.sample import SAMPLERS, uniform

def deadly(num_frames, fps, count):
    if num_frames == 7:
        os.kill(os.getpid(), signal.SIGSEGV)
    if num_frames == 9:
        time.sleep(3600)
    return uniform(num_frames, fps, count)

SAMPLERS["deadly"] = deadly  # the child process reads this file too

if __name__ == "__main__":
    from pipelines.ingest.task import IngestSettings, decode_shard
    from vopcore.shards import Moment, Layout
    settings = IngestSettings(
        folder=sys.argv[1], layout=Layout(32, "raw"), sampler="deadly", stored_frames=4, time_limit=1.0
    )
    decode_shard(settings, 0, [Moment(path, path, None, None) for path in sys.argv[2:]])
'''


def test_videos_that_crash_or_hang_the_decoder_fail_alone(tmp_path):
    script = tmp_path / "attempt.py"
    script.write_text(ATTEMPT)
    lengths = [5, 7, 9, 4]
    paths = [str(write_video(tmp_path / f"{i}.mp4", num_frames=n)) for i, n in enumerate(lengths)]
    command = [sys.executable, str(script), str(tmp_path / "shards"), *paths]

    def attempt() -> int:
        return subprocess.run(
            command, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True
        ).returncode

    assert attempt() == -11, "the first attempt dies of the first guilty video"
    assert sidecars(Store(tmp_path / "shards")) == []
    assert attempt() == 0
    shards = Shards(tmp_path / "shards")
    errors = [shards.videos[path].error for path in paths]
    crashed, hung = "the decoder crashed (signal 11)", "the decoder hung and was ended after 1.5 s"
    assert errors == [None, crashed, hung, None]
    assert [len(shards.frames(path)) for path in paths] == [4, 0, 0, 4]


def test_a_decoder_that_hangs_ends_its_process(tmp_path):
    script = tmp_path / "attempt.py"
    script.write_text(ATTEMPT)
    path = str(write_video(tmp_path / "a.mp4", num_frames=9))
    command = [sys.executable, str(script), str(tmp_path / "shards"), path]
    assert subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT, timeout=60).returncode == 1
    assert Store(tmp_path / "shards").exists("000000.try")
