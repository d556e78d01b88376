"""The tokenizer that belongs to a model."""

import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from support import ROOT
from support.clip_families import write_config

from vopcore.clip import blank, tokenizer


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    config = write_config(tmp_path, "xlm_roberta")
    monkeypatch.setitem(sys.modules, "transformers", None)
    extra = r"transformers is not installed: pip install -e '\.\[multilingual\]'"
    with pytest.raises(ValueError, match=f"^xlm-roberta-base-ViT-B-32: .*{extra}$"):
        tokenizer("xlm-roberta-base-ViT-B-32", 77)
    with pytest.raises(ValueError, match=f"^{config}: .*{extra}$"):
        blank(str(config))

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]["multilingual"]
    assert [Requirement(text).name for text in extras] == ["transformers"]
