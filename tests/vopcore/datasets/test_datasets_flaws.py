"""Broken annotation files and what they are told; ids and the files they are matched to."""

import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.datasets import (
    CLIP4CLIP,
    LISTS,
    MOV,
    MSVD,
    PARAGRAPHS,
    SENTENCES,
    VATEX,
    VATEX_LISTS,
    VIDEOS,
    captions_of,
    files_of,
    read,
    write,
)

from vopcore.datasets import DATASETS, PUBLISHED, SPLITS, DatasetError, problems
from vopcore.datasets.match import VideoFiles


def test_two_files_of_one_video_are_both_named_and_the_mp4_taken(tmp_path):
    videos = ["video0.webm", "video0.mp4", "deep/video0.mp4", "video1.webm", "video0.jpg"]
    table = read("msrvtt_9k", tmp_path, CLIP4CLIP, videos)
    assert files_of(table, tmp_path)["video0"] == "video0.mp4"
    assert files_of(table, tmp_path)["video1"] == "video1.webm"
    (problem,) = problems(table)
    root = tmp_path / "videos"
    assert problem.what == (
        f"3 files for 'video0': took {root}/video0.mp4, not {root}/video0.webm, {root}/deep/video0.mp4"
    )


def test_a_video_whose_file_is_almost_called_so_is_told_and_one_without_any_is_only_counted(tmp_path):
    table = read("msrvtt_9k", tmp_path, CLIP4CLIP, ["Video0.mp4", "video1.mp4"])
    files = files_of(table, tmp_path)
    assert [video for video, file in files.items() if file] == ["video1"]
    (problem,) = problems(table)
    assert problem.what == (
        "no file for 'video0': there is 'Video0', which differs only in upper and lower case"
    )


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_a_folder_that_is_not_there_and_one_without_annotations_are_named(tmp_path, dataset):
    with pytest.raises(DatasetError, match=rf"annotations' folder {tmp_path}/nowhere does not exist"):
        DATASETS[dataset](tmp_path / "nowhere", tmp_path)
    with pytest.raises(DatasetError, match=r"(no|looked for) .*(\.json|\.csv|\.txt|\.pkl)"):
        DATASETS[dataset](tmp_path, tmp_path)
    with pytest.raises(DatasetError, match=rf"videos' folder {tmp_path}/nowhere does not exist"):
        DATASETS[dataset](tmp_path, tmp_path / "nowhere")
    assert set(PUBLISHED[dataset]) <= set(SPLITS)


@pytest.mark.parametrize(
    ("dataset", "files", "says"),
    [
        (
            "msrvtt_9k",
            CLIP4CLIP | {"MSRVTT_JSFUSION_test.csv": "key,sentence\n"},
            r"test\.csv:1: no column video_id",
        ),
        ("msrvtt_9k", CLIP4CLIP | {"MSRVTT_data.json": '{"sentences": [\n{"cap'}, r"data\.json:2: not JSON"),
        ("msrvtt_9k", CLIP4CLIP | {"MSRVTT_data.json": []}, r"data\.json: holds a list, not a dict"),
        (
            "msrvtt_9k",
            CLIP4CLIP | {"MSRVTT_data.json": {"videos": VIDEOS}},
            "no list of objects with video_id",
        ),
        ("msrvtt_9k", CLIP4CLIP | {"MSRVTT_data.json": "[" * 100_000}, r"data\.json"),
        (
            "msvd",
            LISTS | {"captions_msvd.json": {"a_1_2": "one"}},
            "none of its 1 entries is a list of captions",
        ),
        ("msvd", LISTS | {"raw-captions.pkl": pickle.dumps(MSVD)[:-9]}, "is the file complete"),
        ("msvd", LISTS | {"raw-captions.pkl": pickle.dumps(print)}, r"asks for builtins\.print"),
        ("activitynet", {"train.json": PARAGRAPHS, "val_1.json": ""}, r"val_1\.json:1: not JSON"),
        ("didemo", {"test_data.json": [{"video": MOV}]}, "none of its 1 entries has video, description"),
        ("vatex", {"ref_captions.json": VATEX}, "looked for test_list.txt or tst_names.npy"),
        (
            "vatex",
            {"a/ref_captions.json": VATEX, "b/ref_captions.json": VATEX} | VATEX_LISTS,
            "which is meant",
        ),
        ("msrvtt_9k", CLIP4CLIP | {"MSRVTT_train.9k.csv": 'video_id\nvideo0\n"vid'}, r"9k\.csv:3: not csv"),
        ("vatex", {"tst_names.npy": b"\x80\x04oops", "ref_captions.json": VATEX}, "no array of texts"),
    ],
)
def test_a_broken_file_stops_in_one_line_that_names_it(tmp_path, dataset, files, says):
    with pytest.raises(DatasetError, match=says) as error:
        read(dataset, tmp_path, files)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_flaws_that_harm_only_their_line_are_counted_and_the_rest_goes_on(tmp_path):
    test = b"key,vid_key,video_id,sentence\nret0,m,video3,caf\xe9\nret1,m\nret2,m,../../etc,x\n"
    test += (
        b"ret3,m,/etc/passwd,x\nret4,m,video4, \nret4,m,video0,"
        + b"word " * 10_000
        + b"\nret5,m,video3,again\n"
    )
    sentences = [*SENTENCES, {"video_id": "video1"}, {"video_id": "video1", "caption": ""}]
    data = {"videos": VIDEOS, "sentences": sentences}
    table = read("msrvtt_9k", tmp_path, {"MSRVTT_data.json": data, "MSRVTT_JSFUSION_test.csv": test})
    kept = captions_of(table, "test")
    assert kept["video3"] == ["caf\ufffd"]
    assert list(kept) == ["video3", "video0"]
    root = f"{tmp_path / 'annotations'}/"
    said = [str(problem).removeprefix(root) for problem in problems(table)]
    assert sorted(said) == sorted([
        "MSRVTT_data.json: entry 10 left out: it lacks video_id, caption",
        "MSRVTT_JSFUSION_test.csv:2: byte 18 is not UTF-8; read as \ufffd",
        "MSRVTT_JSFUSION_test.csv:3: 2 fields, not 4; left out",
        "MSRVTT_JSFUSION_test.csv:8: 'video3' stands there again; counted once",
        "MSRVTT_data.json: empty caption of 'video1' left out",
        "MSRVTT_JSFUSION_test.csv:4: id '../../etc' refused: it is no name below the videos' folder",
        "MSRVTT_JSFUSION_test.csv:5: id '/etc/passwd' refused: it is no name below the videos' folder",
        "MSRVTT_JSFUSION_test.csv:6: empty caption of 'video4' left out",
        "MSRVTT_JSFUSION_test.csv:6: video 'video4' left out: no caption",
        "MSRVTT_JSFUSION_test.csv:7: caption of 'video0' has 10000 words; the tokenizer will cut it",
    ])  # fmt: skip


NAMES = st.text("ab.-_", min_size=1, max_size=6).filter(lambda name: name.strip("."))
SUFFIX = st.sampled_from(["", ".mp4", ".webm", ".AVI", ".txt", "."])
FOLDER = st.sampled_from(["", "x/", "x/y/"])


@given(st.sets(st.tuples(FOLDER, NAMES, SUFFIX), max_size=8), NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_video_is_found_exactly_by_its_name_its_stem_or_its_path(tmp_path_factory, files, wanted):
    root = tmp_path_factory.mktemp("videos")
    for folder, name, suffix in files:
        write(root, {f"{folder}{name}{suffix}": ""})
    found = {path.removeprefix(f"{root}/") for path in VideoFiles(root).find([wanted])}
    expected = set()
    for folder, name, suffix in files:
        whole = f"{name}{suffix}"
        stem, _, last = whole.rpartition(".")
        if whole == wanted or (stem == wanted and last.lower() in ("mp4", "webm", "avi")):
            expected.add(folder + whole)
    assert found == expected


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
IDS = st.text("abc_-0123", min_size=1, max_size=5)


@given(st.dictionaries(IDS, st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_captions_come_back_in_list_order_each_once(tmp_path_factory, captions, data):
    order = data.draw(st.permutations(list(captions)))
    cut = data.draw(st.integers(0, len(order)))
    lists = {
        "train_list.txt": "\n".join(order[:cut]),
        "val_list.txt": "",
        "test_list.txt": "\n".join(order[cut:]),
    }
    table = read("msvd", tmp_path_factory.mktemp("msvd"), lists | {"captions_msvd.json": captions})
    expected = [
        (split, video, caption)
        for split, ids in [("train", order[:cut]), ("test", order[cut:])]
        for video in ids
        for caption in captions[video]
        if caption.strip()
    ]
    assert [(row["split"], row["video"], row["caption"]) for row in table.to_pylist()] == expected
    num_empty = sum(not caption.strip() for listed in captions.values() for caption in listed)
    assert sum("empty caption" in problem.what for problem in problems(table)) == num_empty


def test_links_that_lead_round_in_a_circle_are_walked_once(tmp_path):
    write(tmp_path, {"a/one.mp4": ""})
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert VideoFiles(tmp_path).find(["one"]) == [str(tmp_path / "a/one.mp4")]


def test_half_characters_in_captions_ids_and_file_names_are_left_out(tmp_path):
    captions = MSVD | {"a_1_2": ["one", "\ud800"], "\udfff": ["x"]}
    table = read("msvd", tmp_path, LISTS | {"captions_msvd.json": captions}, ["b_3_4.avi"])
    assert captions_of(table, "train")["a_1_2"] == ["one"]
    assert [problem.what for problem in problems(table)] == [
        "caption of 'a_1_2' left out: half of a surrogate pair is no text"
    ]
    folder = tmp_path / "videos" / "caf\udce9"  # a folder whose name is Latin-1
    folder.mkdir()
    (folder / "a_1_2.avi").touch()
    table = DATASETS["msvd"](tmp_path / "annotations", tmp_path / "videos")
    assert set(table["path"].to_pylist()) == {None, str(tmp_path / "videos/b_3_4.avi")}
    assert any("is not UTF-8" in problem.what for problem in problems(table))
