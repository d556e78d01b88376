"""Which models can be tuned by what."""

import tomllib

import pytest
from packaging.requirements import Requirement
from support import ROOT

from pipelines.experiment.model_support import (
    OTHER_OPTIONS,
    WORKS,
    as_text,
    model_support,
    model_supports,
)
from vopcore.methods import METHODS

# TempMe merges tokens inside the blocks of open_clip's own transformers; the others read a class token.
NEEDS_HALVES = {"tempme"}
NEEDS_CLASS_TOKEN = {"tempme", "dgl", "mv_adapter"}


@pytest.mark.parametrize(
    ("model", "parameters", "size", "words", "tokenizer", "refused", "other_options"),
    [
        ("ViT-B-32-quickgelu", 151_277_313, 224, 77, "CLIP", set(), set()),
        ("PE-Core-T-16-384", None, 384, 32, "CLIP", NEEDS_CLASS_TOKEN, set()),
        ("ViT-B-16-SigLIP", None, 224, 64, "timm/ViT-B-16-SigLIP", NEEDS_CLASS_TOKEN, set()),
        ("EVA02-B-16", None, 224, 77, "CLIP", NEEDS_HALVES, set()),
        ("MobileCLIP2-B", None, 224, 77, "CLIP", NEEDS_HALVES, set()),
        ("ViT-L-14-CLIPA", None, 224, 32, "bert-base-uncased", NEEDS_CLASS_TOKEN, set()),
        ("ViTamin-S", None, 224, 77, "CLIP", NEEDS_CLASS_TOKEN, set()),
        ("coca_ViT-B-32", None, 224, 76, "CLIP", NEEDS_CLASS_TOKEN, set()),
        # A text of 16 tokens has no room for CoOp's 16 prompts.
        ("ViT-SO400M-14-SigLIP", None, 224, 16, "timm/ViT-B-16-SigLIP", NEEDS_CLASS_TOKEN, {"coop"}),
    ],
)
def test_models_with_blocks_take_every_method_but_those_that_need_more(
    model, parameters, size, words, tokenizer, refused, other_options
):
    row = model_support(model)
    assert (row.size, row.words, row.tokenizer) == (size, words, tokenizer)
    assert parameters in (None, row.parameters)
    assert list(row.marks) == list(METHODS)
    for method, mark in row.marks.items():
        if method in other_options:
            assert mark == OTHER_OPTIONS
            assert row.reasons[method].startswith("prompts: 16 must be at most 14")
        elif method in refused:
            assert mark == "-"
            assert method in row.reasons
        else:
            assert mark == WORKS
            assert method not in row.reasons


def test_towers_without_blocks_say_what_works():
    row = model_support("RN50")
    assert row.parameters == 102_007_137
    works = {method for method, mark in row.marks.items() if mark == WORKS}
    assert {"zero_shot", "full", "bias", "proj", "coop"} <= works
    assert not {"vop", "vpt", "cross_modal_adapter"} & works
    assert not row.takes_all
    assert row.reasons["vop"].startswith(
        "its vision tower, a ModifiedResNet, has no blocks that a method can reach;"
    )
    assert "zero_shot, full, bias, proj" in row.reasons["vop"]


def test_the_table_has_a_mark_for_each_method_and_the_reasons_below():
    rows = model_supports(["ViT-B-32", "RN50"])
    text = as_text(rows)
    lines = text.splitlines()
    for row in rows:
        (line,) = [line for line in lines if line.startswith(f"{row.model} ")]
        assert "".join(row.marks.values()) in line.split()
        assert f"{row.parameters:,}" in line.split()
    for reason in rows[1].reasons.values():
        assert text.count(reason) == 1, "a reason stands once, however many models have it"
    assert lines[-1].startswith("of 2 models every method can tune 1; each method: zero_shot 2, ")

    # Read downwards, the header is the names of the methods.
    header = lines[: max(len(method) for method in METHODS)]
    start = header[-1].index("tokenizer") + 38
    for column, method in enumerate(METHODS):
        letters = "".join(line[start + column] for line in header)
        assert letters.strip() == method


def test_open_clip_4_has_another_attention_and_is_left_out():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = {Requirement(text).name: Requirement(text) for text in project["dependencies"]}
    wanted = requirements["open_clip_torch"].specifier
    assert wanted.contains("3.3.0")
    assert not wanted.contains("4.2.0")
