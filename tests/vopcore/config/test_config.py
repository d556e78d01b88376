"""A config is read whole and typed, or refused in one line: the file, the key and what would be right."""

import json
import re
from pathlib import Path

import pytest

from vopcore.config import ConfigError, backbone, fingerprint, read_config, read_others
from vopcore.methods import METHODS

GOOD = """
name: mine
output: {output}
data: {{dataset: folder, root: {root}}}
train: {{epochs: 3, lr: 1e-4}}
compare: [vop, full]
methods:
  vop: {{text_prompts: 4, train: {{lr: 5e-3}}}}
  full: {{}}
  vop_f: {{spatial_layers: 8}}
"""


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.format(output=tmp_path / "out", root=tmp_path))
    return path


def test_every_method_gets_the_shared_training_settings_under_its_own(good):
    vop, full = read_config(good).methods
    assert (vop.name, vop.method.text_prompts, vop.train.lr, vop.train.epochs) == ("vop", 4, 5e-3, 3)
    assert (full.name, full.train.lr, full.train.epochs) == ("full", 1e-4, 3)


def test_overrides_replace_single_keys_and_keep_their_neighbours(good):
    config = read_config(
        good, ["train.epochs=7", "methods.vop.train.lr=1e-3", "seed=5", "video.max_failed=2%"]
    )
    assert [run.train.epochs for run in config.methods] == [7, 7]
    assert config.methods[0].train.lr == 1e-3
    assert config.methods[0].method.text_prompts == 4
    assert (config.seed, config.video.max_failed) == (5, 0.02)


def test_method_name_runs_one_method_with_what_the_file_says_of_it(good):
    (run,) = read_config(good, ["method.name=vop", "method.vision_prompts=2"]).methods
    assert (run.name, run.method.text_prompts, run.method.vision_prompts, run.train.lr) == ("vop", 4, 2, 5e-3)
    (other,) = read_config(good, ["method.name=bias"]).methods
    assert other.train.lr == 1e-4


def test_compare_all_runs_every_method_of_the_file(good):
    assert [run.name for run in read_config(good, ["compare=all"]).methods] == ["vop", "full", "vop_f"]


def test_paths_do_not_depend_on_the_folder_a_worker_runs_in(good, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    config = read_config("mine.yaml", ["data.videos=videos", "output=out", "storage=s3://bucket/x"])
    assert config.data.videos == str(tmp_path / "videos")
    assert config.output == str(tmp_path / "out")
    assert config.storage == "s3://bucket/x"


def test_another_config_is_found_by_its_name_beside_the_file_and_read_with_what_is_set_over_it(good):
    other = good.with_name("theirs.yaml")
    other.write_text(good.read_text().replace("name: mine", "name: theirs"))
    folder = json.dumps(str(good.parent / ".."))
    config = read_config(good, [f"evaluate.also=[theirs, {{file: {other}, set: {{name: x, seed: 3}}}}]"])
    assert [one.name for one in read_others(config)] == ["theirs", "x"]
    assert [one.seed for one in read_others(config)] == [0, 3]

    (nested,) = read_others(
        read_config(good, [f"evaluate.also=[{{file: theirs, set: {{data: {{root: {folder}}}}}}}]"])
    )
    assert nested.data.root.endswith("..")
    for also, said in (
        ("mine", "another config is named mine too"),
        ("{file: theirs, set: {nam: x}}", "theirs.yaml: nam: unknown key; did you mean 'name'?"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            read_others(read_config(good, [f"evaluate.also=[{also}]"]))


def test_environment_variables_can_be_named(good, monkeypatch):
    monkeypatch.setenv("MY_URI", "http://127.0.0.1:5000")
    assert read_config(good, ["mlflow.uri=${oc.env:MY_URI}"]).mlflow.uri == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.epoch=3"], ["train.epoch", "unknown key", "did you mean 'epochs'"]),
        (["vidoe.frames=3"], ["vidoe", "unknown key", "did you mean 'video'"]),
        (["video.frame=3"], ["video.frame", "unknown key", "did you mean 'frames'"]),
        (["methods.vop.text_prompt=3"], ["methods.vop.text_prompt", "did you mean 'text_prompts'"]),
        (["video.frames=many"], ["video.frames", "integer", "'many'"]),
        (["video.frames=0"], ["video.frames", "greater than or equal to 1", "got 0"]),
        (["methods.vop.text_prompts=many"], ["methods.vop.text_prompts", "integer", "'many'"]),
        (["methods.vop.text_prompts=-1"], ["methods.vop", "text_prompts", "-1"]),
        (["train.lr=fast"], ["train.lr", "number", "'fast'"]),
        (["video.max_failed=200%"], ["video.max_failed", "less than or equal to 1"]),
        (["method.name=vopp"], ["unknown method 'vopp'", "did you mean 'vop_p'", *METHODS]),
        (["compare=[nope]"], ["unknown method 'nope'", *METHODS]),
        (["data.dataset=foldr"], ["data.dataset", "unknown dataset 'foldr'", "did you mean 'folder'"]),
        (["video.sampler=random"], ["video.sampler", "unknown sampler 'random'", "uniform"]),
        (["video.stored_frames=4"], ["video.stored_frames", "4", "video.frames, 12"]),
        (["data.root=/no/such/folder"], ["data.root", "no such folder", "/no/such/folder"]),
        (["data.root=s3://bucket/x"], ["data.root", "s3://bucket/x is no local folder", "storage"]),
        (["data.videos=/no/such/folder"], ["data.videos", "no such folder"]),
        (["clip.model=conf/none.json"], ["clip.model", "no such file"]),
        (["resources.workers=3"], ["train.batch_size", "32", "resources.workers = 3"]),
        (["train=5"], ["train", "expected settings"]),
        (["evaluate.also=[nine]"], ["evaluate.also: unknown config 'nine'; did you mean 'mine'?"]),
        (["evaluate.also=[no/such.yaml]"], ["evaluate.also: no such file: no/such.yaml"]),
        (["evaluate.also=7"], ["evaluate.also: must be names or files of configs, got 7"]),
        (["evaluate.also=[{file: mine, sit: {}}]"], ["evaluate.also.0.sit", "did you mean 'set'?"]),
        (["train.distill=runs:/a"], ["train.distill", "must be settings"]),
        (["train.distill={weight: 2}"], ["train.distill.teacher: missing"]),
        (["train.distill.teacher=outputs/x"], ["train.distill.teacher: must be a run of MLflow, runs:/ID"]),
        (["train.distill={teacher: runs:/a, weight: 0}"], ["train.distill.weight: must be greater than 0"]),
        (["methods.vop.train.distill={teacher: a}"], ["methods.vop.train.distill.teacher: must be a run"]),
        (["oops"], ["'oops'", "key=value"]),
        (["name=null"], ["name: must be a text"]),
        (["name=team/own"], ["name: 'team/own' cannot be part of a file's name"]),
        (["name="], ["name: must not be empty"]),
        (["run=exp/a"], ["run: 'exp/a' cannot be part of a file's name"]),
        (["run=it's"], ["run:", "cannot be part of a file's name"]),
        (["run=.hidden"], ["run:", "cannot be part of a file's name"]),
        (["train.lr=-1"], ["train.lr: must be greater than 0, got -1"]),
        (["train.lr=[]"], ["train.lr:"]),
        (["train.lr=[1e-3,x]"], ["train.lr.1: must be a number, got 'x'"]),
        (["train.search.least=1"], ["methods.vop.train.search: least, 1, is not below most, 0.01"]),
        (["train.search.trials=1"], ["train.search.trials: must be greater than or equal to 2"]),
        (["train.search.trails=4"], ["train.search.trails", "did you mean 'trials'"]),
        (["train.warmup=1"], ["train.warmup: must be less than 1"]),
        (["train.betas=[2,3]"], ["train.betas.0: must be less than 1.0, got 2"]),
        (["train.betas=[0.9]"], ["train.betas"]),
        (["train.clip_grad=.nan"], ["train.clip_grad: must be a finite number"]),
        (["video.time_limit=.inf"], ["video.time_limit: must be a finite number, got inf"]),
        (["video.max_failed=few%"], ["video.max_failed: must be a number, got 'few%'"]),
        (["resources.gpu=maybe"], ["resources.gpu: must be true or false, got 'maybe'"]),
        (["evaluate.parity=clip4clip"], ["evaluate.parity: must be a list, got 'clip4clip'"]),
        (["video=5"], ["video: must be settings (key: value), got 5"]),
        (["compare=[]"], ["compare: is empty"]),
        (["compare=5"], ["compare: must be a list of methods or `all`, got 5"]),
        (["video.frames=12 # as in the paper"], ["video.frames", "' #'", "quotes"]),
        (["train.1=2"], ["train.1", "unknown key"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_what_would_be_right(good, overrides, words):
    with pytest.raises(ConfigError) as error:
        read_config(good, overrides)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert str(good) in message or overrides == ["oops"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\n  b: [1, 2\n", [":2:", "not valid YAML"]),
        ("just words", ["methods", "none given"]),
        ("- a\n- b\n", ["holds no settings"]),
        ("name: ${nope}\n", ["nope"]),
        ("name: a\noutput: /tmp/x\nmethods: {vop: {}}\n", ["data", "missing"]),
        ("name: a\noutput: /tmp/x\ndata: {dataset: folder, root: /tmp}\n", ["methods", "none given"]),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, text, words):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_config(path)
    assert "\n" not in str(error.value)
    for word in ["broken.yaml", *words]:
        assert word in str(error.value)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"^conf/none.yaml: no such file$"):
        read_config("conf/none.yaml")


def test_the_fingerprint_changes_with_any_setting_and_with_nothing_else(good):
    def of(*overrides: str) -> str:
        return fingerprint([run.model_dump() for run in read_config(good, overrides).methods])

    assert of() == of("seed=3")
    assert len({of(), of("train.epochs=4"), of("methods.vop.text_prompts=5"), of("compare=[vop]")}) == 4


def test_reading_writes_nothing(good, tmp_path):
    before = sorted(Path(tmp_path).rglob("*"))
    read_config(good)
    assert sorted(Path(tmp_path).rglob("*")) == before


def test_a_backbone_is_known_by_the_bytes_of_its_files_not_by_where_they_are(good, tmp_path):
    def of(folder: str, text: str) -> dict:
        path = tmp_path / folder / "clip.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        chosen = ["video.size=224", "video.resize=shortest", "video.interpolation=bicubic", "clip.words=77"]
        return backbone(read_config(good, [f"clip.model={path}", *chosen]).clip)

    assert of("a", "{}") == of("b", "{}")
    assert of("a", "{}") != of("a", "{ }")
    assert backbone(read_config(good).clip)["model"] == "ViT-B-32-quickgelu"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["resources.workers=2", "resources.max_workers=1"], "resources.max_workers: 1 is fewer than"),
        (["train.augment=true", "train.prefix_cache=bf16"], "methods.vop.train.prefix_cache: with augment"),
        (["train.prefix_cache=fp16"], "train.prefix_cache: must be 'bf16' or 'fp32', got 'fp16'"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(good, overrides, said):
    with pytest.raises(ConfigError, match=said):
        read_config(good, overrides)


@pytest.mark.parametrize("overrides", [["compare=vop"], ["compare=[vop]"], ["compare='vop'"]])
def test_one_method_needs_no_brackets(good, overrides):
    assert [run.name for run in read_config(good, overrides).methods] == ["vop"]
    assert [run.name for run in read_config(good, ["compare=vop, full"]).methods] == ["vop", "full"]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run=001", "001"),
        ("run='001'", "001"),
        ("run=1e3", "1e3"),
        ("run=yes", "yes"),
        ("run=", ""),
        ("run=a = b", "a = b"),
    ],
)
def test_a_text_is_taken_as_it_is_typed(good, override, value):
    assert read_config(good, [override]).run == value


def test_a_path_with_a_hash_is_not_cut_off_there(good, tmp_path):
    assert read_config(good, [f"output={tmp_path}/run #1"]).output == f"{tmp_path}/run #1"
    assert read_config(good, ["mlflow.uri=null"]).mlflow.uri is None


def test_a_number_in_the_place_of_a_text_is_told_to_be_put_in_quotes(good):
    good.write_text(good.read_text() + "run: 001\n")
    with pytest.raises(ConfigError, match=r"run: must be a text, got 1 \(a number in quotes is a text\)"):
        read_config(good)


@pytest.mark.parametrize("overrides", [["train.lr=[1e-3,x]"], ["train.lr=x"], ["video=5"], ["train.betas=3"]])
def test_no_word_of_the_library_that_checks_reaches_the_user(good, overrides):
    with pytest.raises(ConfigError) as error:
        read_config(good, overrides)
    for word in ("constrained", "pydantic", "tuple", "Input should", "instance of", "valid"):
        assert word not in str(error.value)


@pytest.mark.parametrize(
    ("model", "pretrained", "resize", "interpolation"),
    [
        ("ViT-B-32-quickgelu", "openai", "shortest", "bicubic"),
        ("ViT-B-16-SigLIP", "webli", "squash", "bicubic"),
        ("PE-Core-B-16", "meta", "squash", "bilinear"),
        ("ViT-L-14-CLIPA", "datacomp1b", "squash", "bilinear"),
        ("MobileCLIP2-B", "dfndr2b", "shortest", "bilinear"),
        # One architecture whose weights were trained in two ways.
        ("ViT-H-14-quickgelu", "dfn5b", "squash", "bicubic"),
        ("ViT-H-14-quickgelu", "metaclip_fullcc", "shortest", "bicubic"),
    ],
)
def test_frames_are_made_as_the_model_was_trained(good, model, pretrained, resize, interpolation):
    backbone_overrides = [f"clip.model={model}", f"clip.pretrained={pretrained}"]
    video = read_config(good, backbone_overrides).video
    assert (video.resize, video.interpolation) == (resize, interpolation)

    chosen = [*backbone_overrides, "video.resize=shortest", "video.interpolation=bilinear"]
    video = read_config(good, chosen).video
    assert (video.resize, video.interpolation) == ("shortest", "bilinear")


def test_a_model_that_wants_what_no_decoder_does_is_refused_in_one_line(good, tmp_path):
    config = json.loads(Path("conf/tiny_clip.json").read_text())
    model = tmp_path / "longest.json"
    model.write_text(json.dumps(config | {"preprocess_cfg": {"resize_mode": "longest"}}))
    with pytest.raises(ConfigError) as caught:
        read_config(good, [f"clip.model={model}", "clip.pretrained=null"])
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(good), "longest.json", "video.resize", "longest", "squash"):
        assert part in message
    assert read_config(good, [f"clip.model={model}", "video.resize=squash"]).video.resize == "squash"


def test_of_several_sizes_the_models_own_is_seen_and_all_are_stored(good):
    stored = ["video.size=[224,384]", "clip.pretrained=null"]
    for model, size in (("ViT-B-16-SigLIP", 224), ("ViT-B-16-SigLIP-384", 384)):
        video = read_config(good, [f"clip.model={model}", *stored]).video
        assert video.side == size
        assert sorted(video.sizes) == [224, 384]

    wrong = {"[]": "no size", "[224,224]": "twice", "[224,small]": "integer", "0": "0"}
    for sizes, word in wrong.items():
        with pytest.raises(ConfigError) as caught:
            read_config(good, [f"video.size={sizes}"])
        message = str(caught.value)
        assert "video.size" in message, message
        assert word in message
        assert "\n" not in message


def test_the_config_of_msrvtt_reads_with_another_backbone(tmp_path):
    overrides = ["clip.model=PE-Core-B-16", "clip.pretrained=meta", f"data.root={tmp_path}"]
    config = read_config("conf/msrvtt_9k.yaml", [*overrides, "data.videos=null"])
    assert (config.clip.model, config.clip.pretrained) == ("PE-Core-B-16", "meta")
    assert (config.video.size, config.clip.words) == (224, 32)
    assert (config.video.resize, config.video.interpolation) == ("squash", "bilinear")
