"""Which models can be tuned by what."""

import tomllib

import pytest
from packaging.requirements import Requirement
from support import ROOT

from pipelines.experiment.model_support import ALL, model_support


@pytest.mark.parametrize(
    ("model", "size", "words", "tokenizer"),
    [
        ("PE-Core-T-16-384", 384, 32, "CLIP"),
        ("ViT-B-16-SigLIP", 224, 64, "timm/ViT-B-16-SigLIP"),
        ("EVA02-B-16", 224, 77, "CLIP"),
        ("MobileCLIP2-B", 224, 77, "CLIP"),
        ("ViT-L-14-CLIPA", 224, 32, "bert-base-uncased"),
        ("ViTamin-S", 224, 77, "CLIP"),
        ("coca_ViT-B-32", 224, 76, "CLIP"),
    ],
)
def test_models_with_blocks_take_nearly_every_method(model, size, words, tokenizer):
    row = model_support(model)
    assert (row.size, row.words, row.tokenizer) == (size, words, tokenizer)
    assert row.methods.startswith(f"{ALL} but ")
    assert "tempme" in row.methods


def test_vision_transformers_of_open_clip_that_read_a_class_token_take_every_method():
    row = model_support("ViT-B-32-quickgelu")
    assert (row.size, row.words, row.tokenizer, row.methods) == (224, 77, "CLIP", ALL)


def test_towers_without_blocks_say_what_works():
    row = model_support("RN50")
    assert row.parameters == 102_007_137
    assert row.methods.startswith(
        "its vision tower, a ModifiedResNet, has no blocks that a method can reach;"
    )
    assert "zero_shot, full, bias, proj" in row.methods


def test_open_clip_4_has_another_attention_and_is_left_out():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = {Requirement(text).name: Requirement(text) for text in project["dependencies"]}
    wanted = requirements["open_clip_torch"].specifier
    assert wanted.contains("3.3.0")
    assert not wanted.contains("4.2.0")
