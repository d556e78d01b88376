"""The command that searches: what it prints, what it refuses in a line, what it does not wait for."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from support import ROOT
from support.server import make_index
from support.tuned_model import make
from support.video import write_video

from pipelines import search as cli
from pipelines.search import clock

NAMES = ["a.mp4", "deep/er/'b' #1 <i>.mp4", "new\nline \x1b[31m.mp4"]

# What takes seconds to import, and no search by text needs.
NOT_NEEDED = ("ray", "mlflow", "pandas", "lancedb", "fastapi")

PROGRAM = f"""
import sys
from pipelines.search import main
code = main(sys.argv[1:])
print([name for name in {NOT_NEEDED} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three videos with hostile names, of six seconds each, in an index with windows of two."""
    folder = tmp_path_factory.mktemp("world")
    for number, name in enumerate(NAMES):
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, 150, gop=25 + number)
    make_index(folder / "index", folder / "videos", make(folder / "run", "vop").folder)
    return folder


@pytest.fixture
def search(world, capsys):
    """The command in this process; returns its exit code and what it printed."""

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main([str(world / "index"), *words])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_a_line_for_each_answer_and_the_same_as_json(search):
    code, text, _ = search("a red ball", "--top", "3")
    assert code == 0
    lines = text.splitlines()
    answers = json.loads(search("a red ball", "--top", "3", "--json")[1])
    assert len(lines) == len(answers) == 3
    for line, answer in zip(lines, answers, strict=True):
        assert set(answer) == {"video", "start", "end", "score", "best"}
        assert line.endswith(
            f"{clock(answer['start']):>10} - {clock(answer['end']):>10}  {answer['score']:6.3f}"
        )


def test_a_name_moves_no_cursor(search):
    _, text, _ = search("a", "--by-video")
    names = [line.split("  ")[0] for line in text.splitlines()]
    assert sorted(names) == ["a.mp4", "deep/er/'b' #1 <i>.mp4", "new\\nline \\x1b[31m.mp4"]


def test_a_condition_narrows_down_and_may_leave_nothing(search):
    folder = json.loads(search("a", "--where", "folder = 'deep/er'", "--json")[1])
    assert {answer["video"] for answer in folder} == {NAMES[1]}
    code, text, _ = search("a", "--where", "size < 0")
    assert code == 0
    assert text.startswith("nothing: ")
    assert json.loads(search("a", "--where", "size < 0", "--json")[1]) == []


def test_a_video_is_most_like_itself_and_a_photo_is_an_example_too(search, world):
    (answer,) = json.loads(search("--like", str(world / "videos" / NAMES[0]), "--top", "1", "--json")[1])
    assert answer["score"] > 0.9
    photo = world / "photo.png"
    Image.new("RGB", (40, 30), "red").save(photo)
    assert len(json.loads(search("--like", str(photo), "--top", "2", "--json")[1])) == 2


def test_ten_thousand_words_are_cut_and_answered(search):
    assert search("word " * 10_000, "--top", "1")[0] == 0
    assert search("x" * 100_000, "--top", "1")[0] == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "say what to look for"),
        ([""], "the text is empty"),
        ([" \n"], "the text is empty"),
        (["a", "--like", "b.mp4"], "say what to look for"),
        (["a", "--top", "0"], "0 is not between 1 and 1000"),
        (
            ["a", "--where", "colour = 1"],
            "no such column: colour; a filter is a condition over video",
        ),
        (["a", "--where", "1; DROP TABLE videos"], "without a semicolon"),
        (["--like", "/no/such.mp4"], "/no/such.mp4: no such file"),
        (["--like", "/tmp"], "/tmp: not a file; an example is a video or a photo"),
        (["--like", "README.md"], "not a readable video"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(search, monkeypatch, words, reason):
    monkeypatch.chdir(ROOT)
    code, text, error = search(*words)
    (line,) = error.splitlines()
    assert (code, text) == (2, "")
    assert reason in line


def test_a_video_that_has_gone_since_is_still_found_as_the_index_is_all_that_is_read(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", 150)
    make_index(tmp_path / "index", tmp_path / "videos", make(tmp_path / "run", "vop").folder)
    (tmp_path / "videos/a.mp4").unlink()
    assert cli.main([str(tmp_path / "index"), "a", "--top", "1"]) == 0
    assert capsys.readouterr().out.startswith("a.mp4 ")


def test_a_search_by_text_imports_nothing_that_it_does_not_need(world):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(world / "index"), "a red ball"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00.0"), (59.96, "1:00.0"), (61.25, "1:01.2"), (3599.99, "1:00:00.0"), (3723.4, "1:02:03.4")],
)
def test_times_are_shown_as_players_show_them(seconds, shown):
    assert clock(seconds) == shown
