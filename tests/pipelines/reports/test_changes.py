"""The page of a benchmark's round, as a browser shows it."""

import re

from support.report import dumped

from pipelines.reports.changes import ShownChange, changes_page, verdict
from pipelines.reports.tables import TextTable

CHANGES = [
    ShownChange("main: msvd vop", "worse", "a1b2", -3.1, -4.0, -2.2),
    ShownChange("main: msvd full", "no change", "a1b2", 0.2, -0.9, 1.3),
    ShownChange("main: msvd <b>$x</b>", "better", "a1b2", 2.0, 1.0, 3.0),
]


def test_the_verdict_says_first_what_is_worse_and_by_how_much():
    assert verdict(CHANGES) == (
        "main: msvd vop (-3.1 points) is worse than in round a1b2, by more than chance."
        " main: msvd <b>$x</b> (+2.0 points) is better than in round a1b2, by more than chance."
        " The other 1 have not changed by more than chance."
    )
    assert verdict(CHANGES[1:2]) == "Nothing has changed since round a1b2 that chance would not explain."
    assert verdict([]) == "There is no earlier round to compare with."


def test_the_page_says_it_shows_it_and_marks_the_rows(tmp_path):
    table = TextTable("What has changed", ["row", "now"], [[change.row, "40.0"] for change in CHANGES])
    page = tmp_path / "comparison.html"
    page.write_text(changes_page("quick, round 2", "today", CHANGES, table, [table], 0.01))
    shown = dumped(page)
    body = shown.split("<body>")[1]
    assert body.index("(-3.1 points) is worse") < body.index("<img") < body.index("<table")
    assert re.findall(r'<tr class="(\w+)"><th scope="row">(.*?)</th>', body) == [
        ("worse", "main: msvd vop"),
        ("best", "main: msvd &lt;b&gt;$x&lt;/b&gt;"),
    ]
    assert "below 1%" in body
    assert "<b>" not in body


def test_a_first_round_has_a_page_without_a_picture(tmp_path):
    table = TextTable("What has changed", ["row", "now"], [["main: msvd vop", "40.0"]])
    page = changes_page("quick, round 1", "today", [], table, [table], 0.01)
    assert "There is no earlier round to compare with." in page
    assert "<img" not in page
