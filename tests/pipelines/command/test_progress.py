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
    bar.show(100)  # starts at 10 s, has a line at 20 s, of 30 s to 40 s
    bar.show(140)
    bar.show(20)  # back after a restart
    bar.show(60)
    first, second, third, fourth = lines(capsys)
    assert first == "tune: 100/200 steps"
    assert second == "tune: 140/200 steps, 0.7/s, 01:30 left"
    assert third == "tune: 20/200 steps"
    assert fourth == "tune: 60/200 steps, 0.7/s, 03:30 left"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_goes_on_from_there_and_back(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Bar("tune", 2000, "steps")
    for done, drawn in ((1000, "1000/2000"), (1005, "1005/2000"), (500, "500/2000"), (501, "501/2000")):
        bar.show(done)
        bar._bar.refresh()
        assert drawn in sys.stderr.getvalue()
    speeds = bar._bar.format_dict
    assert (speeds["n"] - speeds["initial"], speeds["n"]) == (1, 501)
    assert "-" not in sys.stderr.getvalue()
