"""Every layout of the seven benchmarks, on a few lines of each format."""

import pickle

import pytest
from support.datasets import (
    CAPTIONS,
    CLIP,
    CLIP4CLIP,
    DESCRIPTIONS,
    DOT,
    FROZEN_MSRVTT,
    LISTS,
    MOV,
    MSVD,
    OFFICIAL_MSRVTT,
    ONE_KA,
    PARAGRAPHS,
    TIMES,
    VAL_1,
    VATEX,
    VATEX_IDS,
    VATEX_LISTS,
    captions_of,
    csv_of,
    files_of,
    read,
    save,
)

from vopcore.datasets import SPLITS, layout, problems


@pytest.mark.parametrize(
    ("dataset", "files", "train", "test", "says"),
    [
        (
            "msrvtt_9k",
            CLIP4CLIP | {"MSRVTT_train.9k.csv": csv_of("video1", "video0")},
            "10",
            ONE_KA,
            "CLIP4Clip",
        ),
        ("msrvtt_9k", CLIP4CLIP, "012", ONE_KA, "derived"),
        (
            "msrvtt_7k",
            CLIP4CLIP | {"MSRVTT_train.7k.csv": csv_of("video2", "video0")},
            "20",
            ONE_KA,
            "train.7k",
        ),
        ("msrvtt_7k", OFFICIAL_MSRVTT, "012", ONE_KA, "official"),
        ("msrvtt_9k", FROZEN_MSRVTT, "102", {"video3": ["3 b"], "video4": ["4 a"]}, "Frozen"),
        ("msrvtt_full", OFFICIAL_MSRVTT, "01", {v: CAPTIONS[v] for v in ("video3", "video4")}, "official"),
    ],
)
def test_msrvtt_in_every_layout(tmp_path, dataset, files, train, test, says):
    table = read(dataset, tmp_path, files)
    expected = {f"video{number}": CAPTIONS[f"video{number}"] for number in train}
    assert list(captions_of(table, "train").items()) == list(expected.items())
    assert captions_of(table, "test") == test
    assert captions_of(table, "val") == ({"video2": CAPTIONS["video2"]} if dataset == "msrvtt_full" else {})
    assert says in layout(table)
    assert problems(table) == []


@pytest.mark.parametrize(
    ("says", "files"),
    [
        ("X-Pool", {"captions_msvd.json": MSVD}),
        (
            "CLIP4Clip",
            {"raw-captions.pkl": pickle.dumps({v: [c.split() for c in m] for v, m in MSVD.items()}, 2)},
        ),
    ],
)
def test_msvd_in_both_layouts_with_files_by_id_or_by_number(tmp_path, says, files):
    mapping = {"youtube_mapping.txt": "a_1_2 vid1\nb_3_4 vid2\n-d_7_8 vid4\n"}
    table = read("msvd", tmp_path, LISTS | files | mapping, ["a_1_2.avi", "deep/vid2.avi", "-d_7_8.avi"])
    assert captions_of(table, "train") == {"a_1_2": ["one", "two"], "b_3_4": ["three"]}
    assert captions_of(table, "val") == {"c_5_6": ["four"]}
    assert captions_of(table, "test") == {"-d_7_8": ["five", "six"]}
    assert files_of(table, tmp_path) == {
        "a_1_2": "a_1_2.avi", "b_3_4": "deep/vid2.avi", "c_5_6": None, "-d_7_8": "-d_7_8.avi"
    }  # fmt: skip
    assert says in layout(table)


def test_lsmdc_keeps_all_sentences_of_a_clip_and_the_dots_of_its_name(tmp_path):
    other = "1012_Unbreakable_00.05.16.065-00.05.21.941"
    files = {
        "LSMDC16_annos_training.csv": "".join(
            f"{clip}\t{TIMES}\t{sentence}\n"
            for clip, sentence in [(other, "first"), (CLIP, "x"), (other, 'second "q')]
        ),
        "LSMDC16_challenge_1000_publictect.csv": f"{CLIP}\t{TIMES}\tSOMEONE stands.\n{other}\t{TIMES}\n",
    }
    table = read(
        "lsmdc", tmp_path, files, [f"3086_UGLY_TRUTH/{CLIP}.avi", f"1012_Unbreakable/{other}.avi.mp4"]
    )
    assert captions_of(table, "train") == {other: ["first", 'second "q'], CLIP: ["x"]}
    assert captions_of(table, "test") == {CLIP: ["SOMEONE stands."]}
    assert files_of(table, tmp_path) == {
        CLIP: f"3086_UGLY_TRUTH/{CLIP}.avi", other: f"1012_Unbreakable/{other}.avi.mp4"
    }  # fmt: skip
    assert [problem.what for problem in problems(table)] == [
        "not there: no val split",
        "5 columns between tabs, not 6; left out",
    ]


@pytest.mark.parametrize(
    ("says", "lists", "order"),
    [
        (
            "CLIP4Clip",
            {"train_ids.json": ["v_two", "v_gone", "v_one"], "val_ids.json": ["v_three"]},
            ["two", "one"],
        ),
        ("Collaborative", {"train_list.txt": "v_two\nv_one\n", "val_1_list.txt": "v_three"}, ["two", "one"]),
        ("official", {}, ["one", "two"]),
    ],
)
def test_activitynet_joins_sentences_and_finds_files_with_and_without_v(tmp_path, says, lists, order):
    files = {"train.json": PARAGRAPHS, "val_1.json": VAL_1}
    table = read("activitynet", tmp_path, files | lists, ["v_one.mkv", "sub/two.mp4", "three.webm"])
    train = {"v_one": ["A woman stands.  She dances."], "v_two": ["A man."]}
    assert captions_of(table, "train") == train
    assert list(captions_of(table, "train")) == [f"v_{name}" for name in order]
    assert captions_of(table, "test") == {"v_three": ["A dog."]}
    assert files_of(table, tmp_path) == {
        "v_one": "v_one.mkv",
        "v_two": "sub/two.mp4",
        "v_three": "three.webm",
    }
    assert {row["video"]: (row["start"], row["end"]) for row in table.to_pylist()}["v_one"] == (0.0, 83.0)
    assert says in layout(table)
    gone = ["video 'v_gone' left out: no caption"] if says == "CLIP4Clip" else []
    assert [problem.what for problem in problems(table)] == gone


@pytest.mark.parametrize(
    ("mov", "dot"),
    [
        (MOV, DOT),
        (f"{MOV}.mp4", f"{DOT}.mp4"),
        (MOV.replace(".mov", ".mp4"), f"{DOT}mp4"),
        ("6060447507.mp4", "7585070382.mp4"),
        (f"owner/x/{MOV.replace('dc1a90b8ef', 'other')}", "10052357@N03_7585070382_other.avi"),
        ("5b8/5c5/5b85c5f263745fa9ff83787ba78cfb.mp4", "fd5ae8bb8677a22d3842677e18e7f.mp4"),
    ],
)
def test_didemo_reads_paragraphs_of_its_list_and_files_by_any_of_their_names(tmp_path, mov, dot):
    files = {
        "test_data.json": DESCRIPTIONS,
        "test_list.txt": f"{DOT}\n{MOV}\n",
        "yfcc100m_hash.txt": "6060447507\t5b85c5f263745fa9ff83787ba78cfb\n"
        "7585070382\tfd5ae8bb8677a22d3842677e18e7f\n",
    }
    table = read("didemo", tmp_path, files, [mov, dot, "1@N00_6060447508_x.mov", "test.json"])
    assert captions_of(table, "test") == {DOT: ["a bug"], MOV: ["the man bends he stands up"]}
    assert list(captions_of(table, "test")) == [DOT, MOV]
    assert files_of(table, tmp_path) == {DOT: dot, MOV: mov}
    assert {(row["start"], row["end"]) for row in table.to_pylist()} == {(0.0, 31.0)}
    assert [problem.what for problem in problems(table)] == [
        "not there: no train split",
        "not there: no val split",
    ]


OFFICIAL_VATEX = [{"videoID": video, "enCap": listed, "chCap": ["中"]} for video, listed in VATEX.items()]


@pytest.mark.parametrize(
    ("says", "captions"),
    [
        ("TS2-Net", {"ref_captions.json": VATEX}),
        ("EMCL", {"vatex_data.json": {v: {"enCap": listed, "chCap": ["中"]} for v, listed in VATEX.items()}}),
        (
            "official",
            {
                "vatex_training_v1.0.json": OFFICIAL_VATEX[:1],
                "vatex_validation_v1.0.json": OFFICIAL_VATEX[1:],
            },
        ),
    ],
)
@pytest.mark.parametrize("hgr", [False, True])
def test_vatex_in_every_layout(tmp_path, says, captions, hgr):
    lists = VATEX_LISTS
    if hgr:
        names = ("trn_names.npy", "val_names.npy", "tst_names.npy")
        lists = {f"public_split/{n}": save(tmp_path, [v]) for n, v in zip(names, VATEX_IDS, strict=True)}
    table = read("vatex", tmp_path, lists | captions, [f"{VATEX_IDS[0]}.mp4"])
    for split, video in zip(SPLITS, VATEX_IDS, strict=True):
        assert captions_of(table, split) == {video: VATEX[video]}
    assert files_of(table, tmp_path)[VATEX_IDS[0]] == f"{VATEX_IDS[0]}.mp4"
    assert says in layout(table)


def test_activitynet_keeps_when_each_sentence_happens(tmp_path):
    entry = {
        "duration": 82.7,
        "timestamps": [[0.8, 19.9], [60.8, 17.4]],
        "sentences": ["A woman stands.", " She dances."],
    }
    untimed = {"duration": 9.0, "timestamps": [[0, 1]], "sentences": ["One.", "Two."]}
    files = {"train.json": {"v_a": entry, "v_b": untimed}, "val_1.json": {"v_c": entry}}
    table = read("activitynet", tmp_path, files)
    a, b, c = table["sentences"].to_pylist()
    assert a == c
    assert a == [
        {"sentence": "A woman stands.", "start": 0.8, "end": 19.9},
        {"sentence": "She dances.", "start": 17.4, "end": 60.8},  # the wrong way round in the file
    ]
    assert b is None
    assert table["caption"][0].as_py() == "A woman stands.  She dances."


def test_didemo_keeps_the_moment_that_most_people_marked(tmp_path):
    entries = [
        {"video": MOV, "description": "he bends", "times": [[1, 1], [0, 0], [1, 1]]},
        {"video": MOV, "description": "he leaves", "times": [[4, 5]]},
        {"video": DOT, "description": "no times"},
    ]
    table = read("didemo", tmp_path, {"test_data.json": entries})
    timed, untimed = table["sentences"].to_pylist()
    assert timed == [
        {"sentence": "he bends", "start": 5.0, "end": 10.0},
        {"sentence": "he leaves", "start": 20.0, "end": 30.0},
    ]
    assert untimed is None
