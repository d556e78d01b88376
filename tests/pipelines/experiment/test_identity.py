"""A key changes with all that decides its content, and with nothing else."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipelines.experiment.identity import data_hash, decode_hash, run_key, search_key, shared_settings
from vopcore.config import read_config
from vopcore.datasets import ANNOTATIONS
from vopcore.shards import Entry, Layout, Shards, write_shard
from vopcore.storage import Store

ENTRY = Entry(
    video="a", status="ok", num_frames=2, times=[0.0, 1.0], source_size=1000, source_mtime=1_700_000_000.0
)


@pytest.fixture
def key(tmp_path):
    """The key of the one run of a small config, with overrides."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\noutput: {tmp_path}/out\ndata: {{dataset: folder, root: {tmp_path}}}\n"
        "clip: {model: conf/tiny_clip.json, pretrained: null, words: 16}\n"
        "video: {frames: 2, size: 32}\nmethods: {vop: {}, zero_shot: {}}\n"
    )

    def of(
        *overrides: str,
        method: str = "vop",
        data: str = "d",
        decode: str = "x",
        others=(),
        of_search: bool = False,
    ) -> str:
        config = read_config(path, [f"method.name={method}", *overrides])
        shards = "/shards/uniform-2x32-raw-abc"
        if of_search:
            return search_key(config, config.methods[0], data, shards, decode)
        return run_key(config, config.methods[0], data, shards, decode, others)

    return of


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "run=again",
        "train.lr=1e-3",
        "train.lr=search",
        "train.epochs=1",
        "train.distill={teacher: runs:/a}",
        "method.vision_prompts=4",
        "method.pooling=query_aware",
        "method.merge=2",
        "video.frames=1",
        "clip.words=12",
        "resources.workers=2",
        "evaluate.post_processing=[dsl]",
    ],
)
def test_whatever_decides_the_numbers_of_a_run_makes_another_run(key, override):
    assert key(override) != key()


@pytest.mark.parametrize(
    "override",
    ["output=/elsewhere", "train.checkpoint_every=7", "resources.max_failures=9", "mlflow.experiment=other"],
)
def test_where_a_run_is_kept_and_how_it_is_watched_does_not(key, override):
    assert key(override) == key()


def test_other_annotations_and_videos_that_were_decoded_anew_make_another_run(key):
    assert key(data="other") != key()
    assert key(decode="other") != key()


def test_another_test_split_is_told_by_its_content_and_not_by_where_its_config_lies(key):
    other = key(others=[("msvd", "d", "x")])
    assert other != key()
    assert key("evaluate.also=[mine]", others=[("msvd", "d", "x")]) == other
    for changed in (("didemo", "d", "x"), ("msvd", "e", "x"), ("msvd", "d", "y")):
        assert key(others=[changed]) != other


def test_a_run_has_one_teacher_however_it_is_named_and_the_weight_of_its_words_counts(key):
    plain = key("train.distill={teacher: runs:/a}")
    assert key("train.distill={teacher: runs:/a/vop_p, weight: 1.0}") == plain
    assert key("train.distill={teacher: runs:/b}") != plain
    assert key("train.distill={teacher: runs:/a, weight: 2}") != plain


def test_a_search_is_told_by_its_range_and_trials_and_by_nothing_where_no_rate_is_searched(key):
    searched = key("train.lr=search")
    for override in ("train.search.least=1e-5", "train.search.most=1e-3", "train.search.trials=8", "seed=1"):
        assert key("train.lr=search", override) != searched
    assert key("train.lr=search", "train.search.at_once=1") == searched
    assert key("train.search.trials=8") == key()
    assert key("train.lr=search", "train.search.trials=8", method="zero_shot") == key(method="zero_shot")


def test_a_search_is_the_same_whatever_is_measured_on_the_test_split(key):
    def search(*overrides: str) -> str:
        return key("train.lr=search", *overrides, of_search=True)

    assert search("evaluate.post_processing=[dsl]") == search()
    assert search("train.search.at_once=1") == search()
    changes = ("seed=1", "run=again", "train.epochs=1", "method.vision_prompts=4", "train.search.trials=8")
    keys = [search(change) for change in changes]
    assert len({search(), *keys}) == 6


def test_seeds_and_labels_stay_apart_whatever_is_in_the_label(key):
    keys = [key(f"run={label}", f"seed={seed}") for label in ("a b", "a_b", "a,b") for seed in (0, 1)]
    assert len(set(keys)) == 6
    assert all("/" not in one and "'" not in one and " " not in one for one in keys)


def test_a_method_that_is_not_trained_reads_no_training_setting_but_the_precision(key):
    untrained = key(method="zero_shot")
    assert key("train.lr=1e-3", "train.epochs=9", "train.batch_size=2", method="zero_shot") == untrained
    assert key("train.precision=bf16", method="zero_shot") != untrained
    assert key("train.epochs=0", "train.lr=1e-3") == key("train.epochs=0", "train.lr=1e-2")


@pytest.fixture
def decoded(tmp_path):
    """The hash of the decodes of some videos, from shards with the entries and frames of one colour each."""

    def of(*entries: Entry, videos: list[str], colour: int = 0) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        rows = []
        for entry in entries:
            pixels = np.full((entry.num_frames, 8, 8, 3), colour, np.uint8)
            rows.append((entry, pixels if entry.num_frames else None))
        write_shard(Store(folder), 0, Layout(8, "raw"), rows)
        return decode_hash(Shards(folder), videos)

    return of


OTHER = Entry(video="b", status="ok", num_frames=1, times=[0.0])


@pytest.mark.parametrize(
    "change",
    [
        {"status": "damaged"},
        {"status": "failed", "num_frames": 0, "times": []},
        {"times": [0.0, 1.5]},
    ],
)
def test_a_video_decoded_to_other_frames_changes_the_hash(decoded, change):
    before = decoded(ENTRY, OTHER, videos=["a", "b"])
    assert decoded(replace(ENTRY, **change), OTHER, videos=["a", "b"]) != before
    assert decoded(OTHER, ENTRY, videos=["b", "a"]) == before
    assert decoded(ENTRY, OTHER, videos=["a", "b"], colour=1) != before


def test_a_file_that_was_copied_and_a_video_that_nobody_asks_for_change_nothing(decoded):
    before = decoded(ENTRY, videos=["a"])
    assert decoded(replace(ENTRY, source_mtime=1_700_000_001.0), videos=["a"]) == before
    assert decoded(ENTRY, OTHER, videos=["a"]) == before


def test_data_that_was_moved_is_the_same_data():
    row = {"split": "test", "video": "a", "path": "/one/a.mp4", "caption": "x"}
    here = pa.Table.from_pylist([row], schema=ANNOTATIONS)
    there = pa.Table.from_pylist([row | {"path": "/two/a.mp4"}], schema=ANNOTATIONS)
    edited = pa.Table.from_pylist([row | {"caption": "y"}], schema=ANNOTATIONS)
    assert data_hash(here) == data_hash(there)
    assert data_hash(here) != data_hash(edited)


def test_what_a_comparison_shares_does_not_name_a_place(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\noutput: {tmp_path}/out\ndata: {{dataset: folder, root: {tmp_path}}}\n"
        "clip: {model: conf/tiny_clip.json, pretrained: null, words: 16}\nmethods: {vop: {}}\n"
    )
    (tmp_path / "moved").mkdir()
    here = shared_settings(read_config(path))
    assert shared_settings(read_config(path, [f"data.root={tmp_path}/moved"])) == here
    assert str(tmp_path) not in str(here)


def test_how_frames_are_resized_is_shared_by_all_rows_of_a_comparison(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\noutput: {tmp_path}/out\ndata: {{dataset: folder, root: {tmp_path}}}\n"
        "clip: {model: conf/tiny_clip.json, pretrained: null}\nmethods: {vop: {}}\n"
    )
    plain = shared_settings(read_config(path))
    squashed = shared_settings(read_config(path, ["video.resize=squash"]))
    assert not {"video.resize", "video.interpolation"} & set(plain), "results of before stay theirs"
    assert (squashed["video.resize"], squashed["video.interpolation"]) == ("squash", "bicubic")


def test_other_sizes_that_are_stored_too_change_no_comparison_and_no_run(tmp_path, key):
    path = tmp_path / "mine.yaml"
    plain = read_config(path)
    more = read_config(path, ["video.size=[48,32]"])
    assert more.video.sizes == (32, 48)
    assert shared_settings(more) == shared_settings(plain)
    assert key("video.size=[48,32]") == key()
