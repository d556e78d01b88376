"""The table of methods against the counts of the papers and against arithmetic."""

import json

import pytest
from support.clip_config import write_clip_config

from pipelines.experiment.method_costs import cost_table
from pipelines.methods import main
from vopcore.methods import METHODS


@pytest.fixture(scope="module")
def rows():
    return {row["method"]: row for row in cost_table("ViT-B-32-quickgelu")}


def test_every_method_has_a_row_with_its_count(rows):
    assert list(rows) == list(METHODS)
    counts = {name: row["parameters"] for name, row in rows.items()}
    assert counts["bias"] == 171_008
    assert counts["vop_fc"] == 14_278_656
    assert counts["cross_modal_adapter"] == 519_168
    assert counts["full"] == 151_277_313


def test_towers_and_kinds_add_up(rows):
    for row in rows.values():
        assert sum(row["by_tower"].values()) == sum(row["by_kind"].values()) == row["parameters"]
    assert rows["cross_modal_adapter"]["by_tower"]["shared"] == 2 * 12 * 16 * (8 + 1)
    assert set(rows["partial"]["by_kind"]) == set(rows["full"]["by_kind"]) == {"CLIP's own"}
    assert rows["vop_p"]["by_kind"] == {
        "frame prompts": 12 * 12 * 4 * 768,
        "prompts": 12 * 4 * (768 + 2 * 512),
    }


def test_counts_of_the_paper_stand_beside_ours_where_they_differ(rows):
    paper = {name: (row["paper"], row["why"]) for name, row in rows.items() if "paper" in row}
    # VoP, Table 1: percent of 119,826,432
    percent = {"bias": 0.104, "partial": 6.410, "vop_f": 0.103, "vop_fp": 0.328, "vop_fc": 11.785}
    assert paper.keys() == percent.keys()
    for name, (count, why) in paper.items():
        assert round(100 * count / 119_826_432, 3) == percent[name]
        assert count != rows[name]["parameters"]
        assert why


def test_flops_are_those_of_the_equations(rows):
    d, frames, tokens = 768, 12, 50
    layer = 2 * 12 * d * d * tokens + 2 * 2 * tokens * tokens * d  # projections and MLP, then attention
    frozen = frames * (12 * layer + 2 * 49 * 3 * 32 * 32 * d + 2 * d * 512)
    assert rows["zero_shot"]["frozen_flops"] == frozen
    assert rows["zero_shot"]["extra_flops"] == rows["bias"]["extra_flops"] == 0
    prompted = 2 * 2 * d * d * 8 + 2 * 2 * tokens * 8 * d  # prompts are keys and values, they ask nothing
    assert rows["vop"]["extra_flops"] == frames * 12 * prompted


def test_the_command_prints_json_and_a_cost_table(capsys, tmp_path):
    model = write_clip_config(tmp_path / "small.json", text={"context_length": 40, "vocab_size": 100})
    assert main(["--model", str(model), "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["vop"]["parameters"] == 2 * 8 * 32 * 2
    assert rows["vop_f"] == {
        "method": "vop_f",
        "refused": "spatial_layers: 8 must be at most 2, the layers of the vision tower",
    }
    assert main(["--model", str(model)]) == 0
    assert "vop_f                 spatial_layers: 8 must be" in capsys.readouterr().out


def test_a_model_that_cannot_be_tuned_is_one_line_and_exit_code_2(capsys):
    assert main(["--model", "ViT-B32"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error (exit code 2): ViT-B32: open_clip has no such model")
    assert error.count("\n") == 1
