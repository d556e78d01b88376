"""Every key of a config documents itself, and asking for it loads neither torch nor a method."""

import subprocess
import sys

import pytest
from support import ROOT

from vopcore.config import settings, settings_text
from vopcore.config.matrix import ConfigEntry, Matrix, MatrixTable

SETTINGS = settings()


def test_the_keys_a_user_sets_are_all_listed_once():
    keys = [setting.key for setting in SETTINGS]
    assert len(keys) == len(set(keys))
    assert {"name", "data.root", "video.frames", "clip.model", "train.lr", "shapes.pretraining.lr"} <= set(
        keys
    )
    assert {"methods", "methods.NAME.pooling", "compare", "method.name", "resources.cache.folder"} <= set(
        keys
    )


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_each_key_says_what_it_is_for_and_what_it_takes(setting):
    assert len(setting.description) > 10
    assert setting.description.endswith(".")
    assert setting.type
    assert "." not in setting.type  # a class of ours or pydantic's


def test_types_and_defaults_are_in_the_words_of_yaml():
    by_key = {setting.key: setting for setting in SETTINGS}
    assert (by_key["data.root"].type, by_key["data.root"].default) == ("text", "required")
    assert (by_key["train.lr"].type, by_key["train.lr"].default) == (
        "number or search or list of: number",
        "0.0001",
    )
    assert (by_key["video.storage"].type, by_key["video.storage"].default) == (
        "auto or raw or jpeg",
        '"auto"',
    )
    assert (by_key["resources.gpu"].type, by_key["resources.gpu"].default) == ("true or false", "false")
    assert "seconds" in by_key["video.time_limit"].description.lower()
    assert "train.lr  (number or search or list of: number, default: 0.0001)" in settings_text()


@pytest.mark.parametrize("section", [Matrix, MatrixTable, ConfigEntry])
def test_the_keys_of_a_benchmark_are_documented_too(section):
    for name, field in section.model_fields.items():
        assert field.description, name


def test_a_config_without_a_method_is_refused_without_torch(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("name: a\noutput: out\nvideo: {frames: many}\nmethods: {vop: {}}\n")
    program = f"""
import sys
from vopcore.config import ConfigError, read_config, settings
settings()
try:
    read_config({str(config)!r})
except ConfigError as error:
    print(error)
assert "torch" not in sys.modules and "open_clip" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "a.yaml: data: missing" in done.stdout
