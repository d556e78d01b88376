"""A teacher is looked up before any work, and refused in one line where it cannot teach."""

import tempfile
from pathlib import Path

import pytest
from support.report import add_run, make_store

from pipelines import track
from pipelines.experiment.teachers import fetch_teachers
from pipelines.ingest.driver import ingest_settings
from vopcore.config import ConfigError
from vopcore.config.sections import Video


@pytest.fixture
def store(tmp_path):
    (tmp_path / "out").mkdir()
    return make_store(tmp_path / "out", "mine")


def finished(store, data="d", shards="right", status="FINISHED", **params):
    """The id of a run with tuned weights; shards: `right` are those of the fixture's config."""
    own = ingest_settings("/elsewhere/shards", Video(frames=2, size=32)).folder
    tags = {"data_hash": data, "shards": own if shards == "right" else shards}
    said = {"clip.model": "conf/tiny_clip.json", "clip.words": "16", "video.frames": "2"} | params
    run_id = add_run(store, "vop", params=said, tags=tags, status=status)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tuned.safetensors").write_bytes(b"weights")
        track.log_files(store, run_id, [Path(folder) / "tuned.safetensors"], "tuned")
    return run_id


def test_the_weights_of_a_teacher_are_brought_once_with_what_they_were_tuned_on(config, store, tmp_path):
    run_id = finished(store, **{"clip.words": "12"})
    ours = config(f"train.distill.teacher=runs:/{run_id}/vop")
    (teacher,) = fetch_teachers(ours, "d").values()
    assert Path(teacher.folder, teacher.file).read_bytes() == b"weights"
    assert Path(teacher.folder) == tmp_path / "out/teacher"
    assert (teacher.clip.words, teacher.clip.pretrained, teacher.frames, teacher.seed) == (12, None, 2, 0)
    assert fetch_teachers(ours, "d") == {f"runs:/{run_id}": teacher}
    assert fetch_teachers(config(), "d") == {}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"status": "FAILED"}, "is failed, and a teacher must be finished"),
        ({"status": "RUNNING"}, "is running, and a teacher must be finished"),
        ({"data": "e"}, "was tuned on other data (msrvtt_9k, e) than this config's (folder, d)"),
        (
            {"shards": "/a/segment-9x32"},
            "was tuned on other shards (segment-9x32) than this config's (",
        ),
        ({"clip.pretrained": "/gone.pt"}, "its clip.pretrained: no such file: /gone.pt"),
    ],
)
def test_a_run_that_cannot_teach_is_refused_in_one_line(config, store, tmp_path, run, said):
    run_id = finished(store, **run)
    with pytest.raises(ConfigError) as error:
        fetch_teachers(config(f"train.distill.teacher=runs:/{run_id}"), "d")
    assert str(error.value).startswith(f"train.distill.teacher: runs:/{run_id} (vop seed 0 ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/teacher").exists()


def test_a_run_that_is_not_there_is_refused_in_one_line(config, store):
    with pytest.raises(ConfigError, match=r"^train\.distill\.teacher: .*nosuchrun.*$"):
        fetch_teachers(config("train.distill.teacher=runs:/nosuchrun"), "d")
