"""Before any work: what an output folder remembers."""

import os

import pytest
from support.experiment import table

from pipelines.experiment import prepare
from vopcore.config import ConfigError
from vopcore.storage.whole import machine_id


def test_an_output_folder_takes_other_methods_and_seeds_of_its_benchmark_and_nothing_else(config, tmp_path):
    prepare.claim_output(config(), table(("test", "a", "x")))
    (tmp_path / "out/shards").mkdir()
    prepare.check_output(config("seed=3", "method.name=full", "train.epochs=9"))
    prepare.check_output(config("video.max_failed=50%", "video.time_limit=9"))  # change no frame
    for override in ("video.frames=3", "clip.words=12", "name=other"):
        with pytest.raises(ConfigError, match=rf"belongs to another config \({override.split('=')[0]} is"):
            prepare.check_output(config(override))


def test_an_output_folder_that_cannot_be_written_is_one_line(config):
    with pytest.raises(ConfigError, match=r"output: cannot write to /proc/none: "):
        prepare.claim_output(config("output=/proc/none"), table(("test", "a", "x")))


def test_videos_without_a_file_are_listed_once_each(config, tmp_path, capsys):
    rows = table(("test", "a", "x"), ("test", "a", "y"), ("train", "b", "z"))
    prepare.claim_output(config(), rows)
    assert (tmp_path / "out/missing.txt").read_text() == "a\nb\n"
    assert "2 videos of the annotations have no file" in capsys.readouterr().out


def test_what_killed_commands_left_half_written_goes_and_what_lives_stays(tmp_path):
    dead, own = 4_194_304, os.getpid()  # the first is no process's number
    (tmp_path / "results").mkdir()
    for folder in (tmp_path, tmp_path / "results"):
        for process in (dead, own):
            (folder / f".vop.json.{machine_id()}-{process}-abc.part").touch()

    with prepare.only_writer(tmp_path):
        left = sorted(path.name.split("-")[1] for path in tmp_path.rglob("*.part"))
    assert left == [str(own)] * 2


def test_a_benchmark_json_that_is_cut_short_claims_nothing_and_is_named(config, tmp_path):
    prepare.claim_output(config(), table(("test", "a", "x")))
    (tmp_path / "out/shards").mkdir()
    file = tmp_path / "out/benchmark.json"
    for content in (file.read_text()[:-20], ""):
        file.write_text(content)
        with pytest.raises(
            ConfigError, match=rf"^output: {file} is damaged, so nobody can say what .* belongs"
        ):
            prepare.check_output(config())
