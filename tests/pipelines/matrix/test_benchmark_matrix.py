"""A benchmark's YAML as cells: every combination once, each read like its config; mistakes in a line."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ROOT

from pipelines import benchmark as cli
from pipelines.matrix.groups import grouped
from vopcore.config import ConfigError, cells, read_config, read_matrix, read_others
from vopcore.storage import writer_lock

METHODS = ["zero_shot", "vop", "vop_p", "full"]
BASE = {
    "name": "small",
    "output": "outputs/small",
    "configs": {"shapes": {"file": "conf/quickstart.yaml"}, "large": {"file": "conf/quickstart.yaml"}},
    "tables": {"methods": {"methods": ["vop", "vop_p"]}},
}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def written(folder: Path, **over) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump(BASE | over, sort_keys=False))
    return path


def some(choices: list[str], most: int) -> st.SearchStrategy:
    return st.lists(st.sampled_from(choices), min_size=1, max_size=most, unique=True)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    methods=some(METHODS, 3),
    configs=some(["shapes", "large"], 2),
    seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    rates=st.lists(st.sampled_from([1e-5, 0.25, 3e-4]), max_size=2, unique=True),
)
def test_a_table_is_every_combination_once_and_each_is_what_run_py_would_read(
    tmp_path, methods, configs, seeds, rates
):
    variants = {f"lr {rate}": {"train.lr": rate, "method": {"train": {"lr": rate}}} for rate in rates}
    table = {"methods": methods, "configs": configs, "seeds": seeds, "variants": variants}
    found = cells(read_matrix(written(tmp_path, tables={"all": table})))
    assert len(found) == len(methods) * len(configs) * len(seeds) * max(1, len(rates))
    assert len({cell.name for cell in found}) == len(found)
    for cell in found:
        (run,) = cell.config.methods
        rate = [f"methods.{run.name}.train.lr={run.train.lr}"] if rates else []
        own = [f"method.name={run.name}", f"seed={cell.seed}", f"output={cell.config.output}", *rate]
        if rates:
            assert run.train.lr in rates
        plain = read_config(cell.file, own)
        assert plain.model_dump(exclude={"mlflow"}) == cell.config.model_dump(exclude={"mlflow"})


def test_a_cell_that_stands_in_two_tables_is_one_run(tmp_path):
    again = {"configs": ["large"], "methods": ["vop"], "variants": {"8": {"method.vision_prompts": 8}}}
    matrix = read_matrix(written(tmp_path, tables={**BASE["tables"], "length": again}))
    found = cells(matrix)
    assert len(found) == 5
    twins = [cell for cell in found if cell.row in ("methods: large vop", "length: large vop 8")]
    assert len({cell.identity for cell in twins}) == 1
    assert sum(len(group.cells) for group in grouped(matrix, found, "x")) == 4


def test_cells_share_a_folder_exactly_where_they_share_data_frames_and_backbone(tmp_path):
    variants = {"few": {"video.frames": 4}, "slow": {"train.lr": 1e-5}, "same": {}}
    matrix = read_matrix(written(tmp_path, tables={"all": {"methods": ["vop"], "variants": variants}}))
    found = grouped(matrix, cells(matrix), "label")
    assert sorted(len(group.cells) for group in found) == [1, 1, 2, 2]
    assert len({group.config.output for group in found}) == 4
    assert {group.config.storage for group in found} == {f"{matrix.output}/{n}" for n in ("shapes", "large")}
    assert all(cell.config.run == "label" for group in found for cell in group.cells)


def test_settings_go_from_all_configs_over_one_config_to_a_variant(tmp_path):
    over = {
        "set": {"train.epochs": 1, "train": {"batch_size": 16}},
        "configs": {"shapes": {"file": "conf/quickstart.yaml", "set": {"train.epochs": 2}}},
        "tables": {"t": {"methods": ["vop"], "variants": {"a": {"train": {"epochs": 3}}, "b": {}}}},
    }
    by_row = {cell.row: cell.config for cell in cells(read_matrix(written(tmp_path, **over)))}
    assert [config.methods[0].train.epochs for config in by_row.values()] == [3, 2]
    assert all(config.methods[0].train.batch_size == 16 for config in by_row.values())


def test_null_leaves_a_config_or_a_table_out(tmp_path):
    path = written(tmp_path, tables={**BASE["tables"], "more": {"configs": ["large"], "methods": ["full"]}})
    assert {cell.row for cell in cells(read_matrix(path, ["configs.large=null"]))} == {
        "methods: shapes vop",
        "methods: shapes vop_p",
    }
    assert len(cells(read_matrix(path, ["tables.methods=null"]))) == 1


def test_a_config_of_the_matrix_is_tested_with_what_the_matrix_sets_over_it(tmp_path):
    configs = {
        "shapes": {"file": "conf/quickstart.yaml"},
        "large": {"file": "conf/quickstart.yaml", "set": {"shapes.seed": 5}},
    }
    over = {"evaluate.also": ["shapes", "large"], "shapes": {"videos": 50}}
    table = {"t": {"methods": ["vop"]}}
    found = cells(read_matrix(written(tmp_path, configs=configs, tables=table, set=over)))

    by_config = {cell.tuned_on: read_others(cell.config)[0] for cell in found}
    assert {name: other.name for name, other in by_config.items()} == {"shapes": "large", "large": "shapes"}
    assert by_config["shapes"].shapes.seed == 5
    assert by_config["shapes"].shapes.videos == 50
    assert all(len(cell.config.evaluate.also) == 1 for cell in found)


def test_without_methods_a_table_compares_what_its_config_does(tmp_path):
    found = cells(read_matrix(written(tmp_path, tables={"t": {"configs": ["shapes"]}})))
    assert [cell.config.methods[0].name for cell in found] == ["zero_shot", "full", "vop", "vop_p"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "seed: unknown key; did you mean 'seeds'?"),
        ("tables.methods.method=[vop]", "tables.methods.method: unknown key; did you mean 'methods'?"),
        ("configs.shapes.fil=x", "configs.shapes.fil: unknown key; did you mean 'file'?"),
        ("configs.more={}", "configs.more.file: missing"),
        ("tables.methods.configs=[shape]", "tables.methods.configs: unknown config 'shape'; did you mean"),
        ("tables.methods.methods=[vopp]", "methods: shapes vopp: conf/quickstart.yaml: methods: unknown"),
        ("configs.shapes.file=conf/none.yaml", "methods: shapes vop: conf/none.yaml: no such file"),
        ("set.seed=2", "set.seed: the benchmark decides this itself"),
        ("tables.methods.variants.a.output=x", "tables.methods.variants.a.output: the benchmark decides"),
        ("set.train.epoch=2", "methods: shapes vop: conf/quickstart.yaml: train.epoch: unknown key; did you"),
        ("set.train.lr=fast", "train.lr"),
        ("set=3", "set: expected settings"),
        ("seeds=[]", "seeds: "),
        ("seeds=[a]", "seeds.0: "),
        ("at_once=0", "at_once: "),
        ("false_alarms=2", "false_alarms: "),
        ("tables=null", "tables: none given"),
        ("tables.methods.configs=[]", "tables: no cell is left"),
        ("set.clip.words=99", "clip.words: 99"),
        ("set.video.size=48", "video.size: 48"),
        ("nonsense", "'nonsense' is not an override"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_line_before_any_work(tmp_path, capsys, override, said):
    output = tmp_path / "out"
    path = written(tmp_path, output=str(output), tables={"methods": {"methods": ["vop"]}})
    assert cli.main([str(path), override]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error (exit code 2): ")
    assert said in line
    assert {file.name for file in output.glob("*")} <= {"lock"}


def test_a_second_benchmark_in_the_same_folder_is_refused(tmp_path, capsys):
    path = written(tmp_path, output=str(tmp_path / "out"))
    with writer_lock(tmp_path / "out"):
        assert cli.main([str(path)]) == 2
    assert f"{tmp_path}/out is being written by" in capsys.readouterr().err


def test_a_config_that_cannot_be_read_names_the_cell(tmp_path):
    matrix = read_matrix(written(tmp_path), ["configs.large.set.data.videos=/none"])
    with pytest.raises(ConfigError, match=r"^methods: large vop: .*no such folder: /none"):
        cells(matrix)


def test_the_identity_of_a_cell_is_its_settings(tmp_path):
    path = written(tmp_path)
    found = {o: cells(read_matrix(path, [o]))[0].identity for o in ("set.train.lr=1", "set.train.lr=1.0")}
    assert len(set(found.values())) == 1
    other = cells(read_matrix(path, ["set.train.lr=2"]))[0].identity
    assert other not in found.values()


def test_a_setting_that_a_method_does_not_read_is_no_change_of_its_cell(tmp_path):
    path = written(tmp_path, tables={"methods": {"methods": ["zero_shot", "vop"]}})

    def identities(*overrides):
        found = {}
        for cell in cells(read_matrix(path, list(overrides))):
            found.setdefault(cell.config.methods[0].name, set()).add(cell.identity)
        return found

    before = identities()
    after = identities("set.train.lr=0.5", "set.train.checkpoint_every=7")
    assert before["zero_shot"] == after["zero_shot"]
    assert before["vop"].isdisjoint(after["vop"])
    assert identities("set.train.checkpoint_every=7") == before
    assert before["zero_shot"].isdisjoint(identities("set.train.precision=bf16")["zero_shot"])
