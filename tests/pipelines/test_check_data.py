"""The report on a data set before any work: real videos on disk, exit codes, and what is counted."""

import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs
from support import ROOT
from support.bucket import make_bucket, s3_server
from support.datasets import LISTS, MSVD, write

from pipelines.check_data import main
from vopcore import clip
from vopcore.datasets import check, shapes

TINY = ROOT / "conf" / "tiny_clip.json"
CONFIG = """
name: check
output: {root}/out
data: {{dataset: {dataset}, root: {root}/data}}
video: {{frames: 4, size: 32}}
clip: {{model: {tiny}, pretrained: null, words: 8}}
methods: {{vop: {{}}}}
"""


@pytest.fixture
def checked(tmp_path, capsys):
    """Runs the command on a data set below tmp_path/data; gives (exit code, report)."""

    def run(dataset, *arguments):
        (tmp_path / "data").mkdir(exist_ok=True)
        config = tmp_path / "check.yaml"
        config.write_text(CONFIG.format(root=tmp_path, dataset=dataset, tiny=TINY))
        code = main([str(config), "--json", *arguments])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    list(shapes.render(root, 3, 2, 0))
    return root


def test_videos_in_a_bucket_are_judged_as_those_on_a_disk(checked, corpus, tmp_path):
    (tmp_path / "data").symlink_to(corpus)
    settings = ("--headers", "all", "video.max_failed=50%")
    _, on_disk = checked("folder", *settings)
    with s3_server() as options:
        filesystem = make_bucket("videos", options)
        fs.copy_files(str(corpus), "videos/shapes#1", destination_filesystem=filesystem)
        place = f"s3://videos/shapes#1{options}"
        code, in_bucket = checked("folder", *settings, f"data.videos={place}")

    def facts(report: dict) -> tuple:
        bad_files = [(Path(bad["file"]).name, bad["reason"]) for bad in report["headers"]["unreadable"]]
        return report["splits"], report["headers"]["checked"], sorted(bad_files)

    assert code == 0
    assert facts(in_bucket) == facts(on_disk)
    assert len(in_bucket["headers"]["unreadable"]) == 2


def test_a_rendered_corpus_is_usable_and_its_broken_file_is_named(checked, corpus, tmp_path):
    (tmp_path / "data").symlink_to(corpus)
    code, report = checked("folder", "--headers", "all", "video.max_failed=50%")
    assert code == 0
    assert report["usable"]
    assert report["errors"] == []
    assert report["layout"] == "folder"
    train, test = report["splits"]["train"], report["splits"]["test"]
    assert (train["videos"], train["captions"], train["files_missing"]) == (5, 5, 0)  # 3, and 2 broken ones
    assert (test["videos"], test["published"]) == (4, None)
    assert report["headers"]["checked"] == report["headers"]["files"] == 9
    (bad,) = [file for file in report["headers"]["unreadable"] if file["file"].endswith("not_a_video.mp4")]
    assert "not a readable video file" in bad["reason"]
    assert report["disk"]["needed"] == 9 * 4 * 32 * 32 * 3
    assert report["missing"] == {"videos": 0, "list": None}


def test_headers_are_sampled_unless_all_are_asked_for(checked, corpus, tmp_path):
    (tmp_path / "data").symlink_to(corpus)
    _, report = checked("folder", "--headers", "3")
    assert (report["headers"]["checked"], report["headers"]["files"]) == (3, 9)


def test_missing_videos_are_counted_and_listed_and_forbid_only_an_empty_split(checked, corpus, tmp_path):
    write(tmp_path / "data", LISTS | {"captions_msvd.json": MSVD})
    code, report = checked("msvd")
    assert code == 1
    assert report["errors"] == [
        f"train: none of the 2 videos has a file: looked below {tmp_path}/data for names such as 'a_1_2'",
        f"test: none of the 1 videos has a file: looked below {tmp_path}/data for names such as '-d_7_8'",
    ]
    listed = Path(report["missing"]["list"]).read_text().splitlines()
    assert listed == ["train\ta_1_2", "train\tb_3_4", "val\tc_5_6", "test\t-d_7_8"]
    whole = next((corpus / "videos").glob("*.mp4")).read_bytes()
    write(tmp_path / "data", {"a_1_2.mp4": whole, "-d_7_8.mp4": whole})
    code, report = checked("msvd", "--missing", str(tmp_path / "gone.txt"))
    assert code == 1
    assert (tmp_path / "gone.txt").read_text() == "train\tb_3_4\nval\tc_5_6\n"
    assert "train: 1 of 2 videos have no file" in report["warnings"]
    assert "train: 2 videos, papers have 1,200" in report["warnings"]
    assert "test: 2 captions, papers have 27,763" in report["warnings"]
    too_many = "at least 2 of 4 videos will fail, and video.max_failed allows 1.00%: run.py would stop with"
    assert report["errors"] == [f"{too_many} code 3"]
    assert checked("msvd", "video.max_failed=50%")[0] == 0
    assert checked("msvd", "data.missing=allow")[0] == 0
    assert report["max_failed"] == {"failed": 2, "videos": 4, "allowed": 0.01, "exceeded": True}


def test_files_that_are_all_unreadable_forbid_the_run(checked, tmp_path):
    write(tmp_path / "data", LISTS | {"captions_msvd.json": MSVD, "a_1_2.avi": "no video", "-d_7_8.avi": ""})
    code, report = checked("msvd")
    assert code == 1
    assert report["errors"] == ["none of the 2 files that were opened is a readable video"]


def test_duplicates_leakage_and_cut_tokens_are_counted(checked, tmp_path):
    lists = {
        "train_list.txt": "a_1_2\nb_3_4\n",
        "val_list.txt": "a_5_6\n",
        "test_list.txt": "c_7_8\nd_9_10\n",
    }
    captions = {
        "a_1_2": [
            "one two three four five six seven eight nine",
            "one two three four five six",
            "a dog",
            "a dog",
        ],
        "b_3_4": ["a cat"],
        "a_5_6": ["a  DOG"],
        "c_7_8": ["a bird", "a cat"],
        "d_9_10": ["a bird"],
    }
    write(tmp_path / "data", lists | {"captions_msvd.json": captions})
    _, report = checked("msvd")
    assert report["duplicates"]["train"]["within_a_video"] == 1
    assert report["duplicates"]["test"]["of_several_videos"] == 2
    assert report["leakage"]["val"] == {
        "videos": 0, "files": 0, "clips_of_shared_sources": 1, "captions": 1
    }  # fmt: skip
    assert report["leakage"]["test"]["captions"] == 1
    tokens = report["tokens"]["train"]  # 11 and 8 with start and end, 8 are kept
    assert (tokens["longest"], tokens["captions_cut"], tokens["tokens_cut"]) == (11, 1, 3)
    assert tokens["tokens_cut_percent"] == round(100 * 3 / (11 + 8 + 4 + 4 + 4), 2)


def test_tokens_are_counted_as_the_tokenizer_counts_them():
    tokenize = clip.tokenizer(str(TINY), 16)
    for caption in ("a red circle", "Ünïcode, & <b>html</b>!", "supercalifragilistic"):
        kept = int((tokenize([caption]) != 0).sum())
        rows = pa.table({"caption": [caption]})
        assert check.tokens(rows, 16, tokenize.count)["longest"] == kept


def test_tokens_of_very_many_captions_are_those_of_a_sample_that_says_so(
    checked, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(check.tokens, "__defaults__", (3, 0))
    (tmp_path / "data").symlink_to(corpus)
    _, report = checked("folder", "clip.words=3", "video.max_failed=50%")
    assert report["splits"]["train"]["captions"] == 5
    tokens = report["tokens"]["train"]
    assert (tokens["captions_counted"], tokens["captions_cut"]) == (3, 3)
    assert any("train: 3 captions of 3 drawn (100.0%)" in warning for warning in report["warnings"])


def test_counts_by_column_are_those_of_a_loop_over_rows():
    rng = random.Random(0)
    rows = []
    for _ in range(3000):
        number = rng.randrange(200)
        path = None if number % 7 == 0 else f"/v/{number // 2}.mp4"
        caption = (
            rng.choice(["A  dog", "a dog", "two Ünts"]) + " " * rng.randrange(2) + str(rng.randrange(300))
        )
        rows.append({"split": "train", "video": f"v{number}", "path": path, "caption": caption})
    (table,) = check.by_split(pa.Table.from_pylist(rows)).values()

    videos_of_caption = defaultdict(set)
    videos_of_file = defaultdict(set)
    for row in rows:
        videos_of_caption[" ".join(row["caption"].lower().split())].add(row["video"])
        videos_of_file[row["path"]].add(row["video"])
    shared = [row for row in rows if len(videos_of_caption[" ".join(row["caption"].lower().split())]) > 1]
    shared_files = [path for path, videos in videos_of_file.items() if path and len(videos) > 1]
    assert check.duplicates(table) == {
        "within_a_video": len(rows) - len({(row["video"], row["caption"]) for row in rows}),
        "of_several_videos": len(shared),
        "files_of_several_videos": len(shared_files),
    }
    numbers = Counter(row["video"] for row in rows)
    counted = check.counts(table, None)
    assert counted["captions_per_video"] == [min(numbers.values()), max(numbers.values())]
    assert counted["files_found"] == len({row["video"] for row in rows if row["path"]})
    assert len(check.missing({"train": table})) == counted["files_missing"]
    lengths = [len(row["caption"]) for row in rows]
    tokens = check.tokens(table, 9, len)
    assert (tokens["longest"], tokens["mean"]) == (max(lengths), round(sum(lengths) / len(rows), 1))
    assert tokens["captions_cut"] == sum(length > 9 for length in lengths)
    assert tokens["tokens_cut"] == sum(length - 9 for length in lengths if length > 9)


def test_annotations_that_cannot_be_read_are_one_error_and_exit_code_1(checked, capsys):
    code, report = checked("msvd")
    assert code == 1
    assert not report["usable"]
    assert re.search(r"no layout of MSVD .* X-Pool \(no captions_msvd\.json", report["errors"][0])


def test_a_wrong_config_is_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path / "nothing.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_text_for_people_says_what_the_json_says(corpus, tmp_path, capsys):
    (tmp_path / "data").symlink_to(corpus)
    config = tmp_path / "check.yaml"
    config.write_text(CONFIG.format(root=tmp_path, dataset="folder", tiny=TINY))
    options = ["clip.words=6", "video.max_failed=50%", "--headers", "all"]
    assert main([str(config), *options]) == 0
    said = capsys.readouterr().out
    assert "train        5 videos" in said
    assert "not_a_video.mp4: not a readable video file" in said
    assert "longer than 6 tokens" in said
    assert said.endswith("usable\n")
