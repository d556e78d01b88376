"""What a log says of a long step: how far, how fast, how long still."""

import io
import sys
import time

import pytest

from pipelines.command.progress import Bar


@pytest.fixture
def clock(monkeypatch):
    """Ten seconds later each time somebody looks."""
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.strip().splitlines()


def test_steps_of_an_earlier_attempt_do_not_count_for_the_speed(clock, capsys):
    bar = Bar("tune", 200, "steps")  # at 0 s
    bar.show(100)  # starts at 10 s
    bar.show(110)  # the first ones: from here on, at 30 s, it is measured
    bar.show(140)
    bar.show(20)  # back after a restart
    bar.show(25)
    bar.show(60)
    assert lines(capsys) == [
        "tune: 100/200 steps",
        "tune: 110/200 steps",
        "tune: 140/200 steps, 0.5/s, 02:00 left",
        "tune: 20/200 steps",
        "tune: 25/200 steps",
        "tune: 60/200 steps, 0.6/s, 03:59 left",
    ]


def test_the_wait_for_the_first_one_does_not_make_hours_of_minutes(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = Bar("ingest", 1000, "videos")
    for now[0], count in (
        (0.5, 0),
        (60.0, 0),
        (60.5, 1),
        (61.5, 3),
        (65.5, 11),
    ):  # a minute to start, then 2/s
        bar.show(count)
    assert lines(capsys) == ["ingest: 1/1,000 videos", "ingest: 11/1,000 videos, 2.0/s, 08:14 left"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_goes_on_from_there_and_back(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Bar("tune", 2000, "steps")
    for done, drawn in (
        (1000, "1000/2000"),
        (1005, "1005/2000"),
        (500, "500/2000"),
        (501, "501/2000"),
        (503, "503/2000"),
    ):
        bar.show(done)
        bar._bar.refresh()
        assert drawn in sys.stderr.getvalue()
    speeds = bar._bar.format_dict
    assert (speeds["n"] - speeds["initial"], speeds["n"]) == (2, 503)
    assert "-" not in sys.stderr.getvalue()
