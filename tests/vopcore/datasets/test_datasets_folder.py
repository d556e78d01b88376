"""`folder`: people's own videos, and what a broken captions.jsonl is told."""

import json

import pytest

from vopcore.datasets import ANNOTATIONS, DATASETS, DatasetError, VideosFolder, layout, problems
from vopcore.datasets import table as table_module


def write(root, *lines):
    (root / "captions.jsonl").write_text(
        "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    )


def line(**changes):
    return {"video": "clips/a.mp4", "split": "train", "captions": ["a dog"]} | changes


@pytest.fixture
def root(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "clips" / name).touch()
    return tmp_path


def read(root):
    return DATASETS["folder"](root, root)


def test_videos_are_found_below_a_uri_too(root):
    write(root, line(), line(video="clips/none.mp4"))
    table = DATASETS["folder"](root, f"file://{root}")
    assert table["path"].to_pylist() == [f"{root}/clips/a.mp4", None]
    with pytest.raises(DatasetError, match=r"file:///no/such does not exist"):
        DATASETS["folder"](root, "file:///no/such")


def test_rows_follow_the_file_and_captions_of_a_video_stand_together(root):
    write(
        root,
        line(captions=["a dog", "a cat"]),
        line(video="clips/b.mp4", split="test", start=0, end=7.5),
        line(captions=["a bird"]),
        line(video="clips/c.mp4", split="val"),
    )
    table = read(root)
    assert table.schema.equals(ANNOTATIONS)
    assert layout(table) == "folder"
    assert problems(table) == []
    a, b = str(root / "clips/a.mp4"), str(root / "clips/b.mp4")
    assert [tuple(row.values())[:-1] for row in table.to_pylist()] == [
        ("train", "clips/a.mp4", a, None, None, "a dog"),
        ("train", "clips/a.mp4", a, None, None, "a cat"),
        ("train", "clips/a.mp4", a, None, None, "a bird"),
        ("test", "clips/b.mp4#0.0-7.5", b, 0.0, 7.5, "a dog"),
        ("val", "clips/c.mp4", None, None, None, "a dog"),
    ]


def test_two_moments_of_one_file_are_two_videos(root):
    write(root, line(start=0.0, end=2.0), line(start=2.0, end=4.0), line(start=4.0))
    assert read(root)["video"].to_pylist() == [
        "clips/a.mp4#0.0-2.0",
        "clips/a.mp4#2.0-4.0",
        "clips/a.mp4#4.0-",
    ]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"video": "clips/a.mp4", "split"', "not JSON"),
        ('["clips/a.mp4"]', "captions and split and video missing"),
        ({"video": "clips/a.mp4", "split": "train", "caption": "a dog"}, "captions missing"),
        (line(split="training"), "split is 'training', not one of train, val, test"),
        (line(video=3), "video is 3"),
        (line(captions="a dog"), "captions is 'a dog', not a list of texts"),
        (line(start=3, end=2), "start 3 and end 2 are no moment"),
        (line(start="0:03"), "start is '0:03', not seconds"),
        (line(end=float("nan")), "no moment"),
    ],
)
def test_a_broken_line_stops_with_its_number(root, bad, says):
    write(root, line(), bad, line())
    with pytest.raises(DatasetError, match=says) as error:
        read(root)
    assert str(error.value).startswith(f"{root / 'captions.jsonl'}:2: ")
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf8_stop_with_their_line(root):
    (root / "captions.jsonl").write_bytes(json.dumps(line()).encode() + b'\n{"video": "caf\xe9.mp4"}\n')
    with pytest.raises(DatasetError, match=r"captions\.jsonl:2: byte 15 is not UTF-8"):
        read(root)


def test_ids_that_leave_the_folder_are_refused_and_the_rest_goes_on(root):
    (root.parent / "secret.mp4").touch()
    write(
        root,
        line(video="../secret.mp4"),
        line(video="/etc/passwd"),
        line(),
        line(video="clips/../../secret.mp4"),
    )
    table = read(root)
    assert table["video"].to_pylist() == ["clips/a.mp4"]
    assert [problem.line for problem in problems(table)] == [1, 2, 4]
    assert all("refused" in problem.what for problem in problems(table))


@pytest.mark.parametrize(
    ("stored", "written", "difference"),
    [
        ("clips/Talk.MP4", "clips/talk.mp4", "upper and lower case"),
        (
            "clips/Cafe\u0301.mp4",
            "clips/Caf\u00e9.mp4",
            "how its accents are written (Unicode's NFC and NFD)",
        ),
        ("clips/d.mp4", "clips\\d.mp4", "the slashes"),
    ],
)
def test_a_path_that_is_almost_right_is_told_with_its_line_and_not_taken(root, stored, written, difference):
    (root / stored).touch()
    write(root, line(), line(video=written), line(video="clips/nothing_like_it.mp4"))
    table = read(root)
    assert table["path"].to_pylist() == [str(root / "clips/a.mp4"), None, None]
    (problem,) = problems(table)
    assert problem.line == 2
    assert problem.what == (
        f"no file for {written!r}: there is {stored!r}, which differs only in {difference}"
    )


def test_empty_captions_are_left_out_and_long_ones_noted(root):
    write(root, line(captions=["", "a dog", " \t"]), line(video="clips/b.mp4", captions=["word " * 10_000]))
    table = read(root)
    assert [len(caption.split()) for caption in table["caption"].to_pylist()] == [2, 10_000]
    assert [str(problem).removeprefix(f"{root}/") for problem in problems(table)] == [
        "captions.jsonl:1: empty caption of 'clips/a.mp4' left out",
        "captions.jsonl:1: empty caption of 'clips/a.mp4' left out",
        "captions.jsonl:2: caption of 'clips/b.mp4' has 10000 words; the tokenizer will cut it",
    ]


def test_a_missing_folder_or_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"captions\.jsonl does not exist"):
        read(tmp_path)
    write(tmp_path, line())
    with pytest.raises(DatasetError, match=r"videos' folder .*/nowhere does not exist"):
        DATASETS["folder"](tmp_path, tmp_path / "nowhere")
    write(tmp_path)
    with pytest.raises(DatasetError, match="holds no usable line"):
        read(tmp_path)


def test_an_end_of_four_hundred_digits_is_refused_with_its_line(root):
    write(root, '{"video": "clips/a.mp4", "split": "test", "captions": ["x"], "end": 1' + "0" * 399 + "}")
    with pytest.raises(DatasetError, match=r"captions.jsonl:1: end has 400 digits: no time in seconds"):
        read(root)


def test_keys_that_nobody_reads_are_told_once_with_how_often(root):
    write(root, line(caption="a", weight=1), line(video="clips/b.mp4", weight=2))
    told = [problem.what for problem in problems(read(root))]
    assert [what for what in told if "weight" in what] == [
        "key 'weight' of 2 lines is not read; known: captions, end, split, start, video"
    ]
    assert "key 'caption' of 1 lines is not read; known: captions, end, split, start, video" in told


def test_links_that_lead_out_of_the_folder_are_followed_only_where_that_is_said(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "far.mp4").touch()
    (root / "clips" / "far.mp4").symlink_to(outside / "far.mp4")
    (root / "more").symlink_to(outside)
    (root / "clips" / "near.mp4").symlink_to(root / "clips" / "a.mp4")
    write(root, *[line(video=video) for video in ("clips/far.mp4", "more/far.mp4", "clips/near.mp4")])

    table = read(root)
    near = f"{root}/clips/near.mp4"
    assert table["path"].to_pylist() == [None, None, near]
    (problem,) = problems(table)
    assert problem.what.startswith("2 links lead out of the videos' folder and are left out")

    table = DATASETS["folder"](root, VideosFolder(str(root), follow_links=True))
    assert table["path"].to_pylist() == [f"{root}/clips/far.mp4", f"{root}/more/far.mp4", near]
    assert problems(table) == []


def test_more_captions_than_a_piece_of_a_column_holds_stay_in_order(root, monkeypatch):
    monkeypatch.setattr(table_module, "CHUNK", 3)
    lines = [line(video=f"clips/{n % 5}.mp4", captions=[f"{n} x", f"{n} y"]) for n in range(20)]
    write(root, *lines)
    rows = read(root)
    wanted = [(f"clips/{v}.mp4", f"{n} {c}") for v in range(5) for n in range(v, 20, 5) for c in "xy"]
    assert list(zip(rows["video"].to_pylist(), rows["caption"].to_pylist(), strict=True)) == wanted
