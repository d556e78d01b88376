"""A condition picks videos; what is no condition is refused in one line, and nothing else is ever run."""

from datetime import datetime

import pytest
from support.moments import video

from vopcore.index import FilterError, VideoFilter


def at(date: str) -> float:
    return datetime.strptime(date, "%Y-%m-%d").timestamp() + 3600


NAMES = ["a.mp4", "cats/b.mp4", "cats/big/c.mp4", "cats'/d.mp4", "dogs/e_1.mp4", "cats2/f.mp4"]
DATES = ["2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01", "2026-05-01", "2026-06-01"]


@pytest.fixture(scope="module")
def videos():
    listed = [
        video(name, duration=10.0 * i, mtime=at(date))
        for i, (name, date) in enumerate(zip(NAMES, DATES, strict=True))
    ]
    return VideoFilter(listed)


def names(is_picked) -> list[str]:
    return [name for name, picked in zip(NAMES, is_picked, strict=True) if picked]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("folder = 'cats'", ["cats/b.mp4"]),
        ("video LIKE 'cats/%'", ["cats/b.mp4", "cats/big/c.mp4"]),
        ("date >= '2026-04-01' AND duration < 50", ["cats'/d.mp4", "dogs/e_1.mp4"]),
        ("folder = 'cats''' -- a remark", ["cats'/d.mp4"]),
        ("name IN ('a.mp4', ')')", ["a.mp4"]),
        ("NOT (duration > 5 OR 0)", ["a.mp4"]),
        ("1=0", []),
    ],
)
def test_a_condition_picks_videos(videos, where, expected):
    assert names(videos.pick(where)) == expected


def test_a_folder_is_its_folders_too_and_dates_include_both_ends(videos):
    assert names(videos.pick(folder="cats")) == ["cats/b.mp4", "cats/big/c.mp4"]
    assert names(videos.pick(folder="cats'")) == ["cats'/d.mp4"]
    assert names(videos.pick(folder="' OR 1=1 --")) == []
    assert names(videos.pick(after="2026-02-01", before="2026-03-01")) == NAMES[1:3]
    assert names(videos.pick("duration > 10", folder="cats", before="2026-12-31")) == ["cats/big/c.mp4"]
    assert videos.folders() == ["", "cats", "cats'", "cats/big", "cats2", "dogs"]


@pytest.mark.parametrize(
    "where",
    [
        "",
        "   ",
        "colour = 'red'",
        "folder = 'cats",
        "folder = 'cats'; DROP TABLE videos",
        "1) OR (1",
        "1=1) UNION SELECT 1 --",
        "/* never closed",
        "count(*) > 0",
        "load_extension('/tmp/x')",
        "readfile('/etc/passwd')",
        "randomblob(1000000000) > 0",
        "number IN (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)",
        "(SELECT 1 FROM pragma_database_list)",
        "DELETE FROM videos",
        "a\x00b",
        "(" * 5000 + "1" + ")" * 5000,
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(videos, where):
    with pytest.raises(FilterError) as error:
        videos.pick(where)
    assert "\n" not in str(error.value).replace("\\n", "")
    assert "for example folder = " in str(error.value)
    assert names(videos.pick()) == NAMES


@pytest.mark.parametrize("date", ["yesterday", "2026-13-01", "2026-07-31'"])
def test_a_date_that_is_none_is_refused(videos, date):
    with pytest.raises(FilterError, match="write it as 2026-07-31"):
        videos.pick(after=date)
