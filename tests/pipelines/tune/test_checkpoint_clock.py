"""When a checkpoint is due: by steps, by time beside each epoch, and at the end."""

import pytest

from pipelines.tune import worker
from pipelines.tune.worker import CheckpointClock


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand, in seconds."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    hands = Clock()
    monkeypatch.setattr(worker, "time", hands)
    return hands


def due_steps(every, clock, seconds_per_step, steps_per_epoch=10, total=25):
    is_due = CheckpointClock(every, steps_per_epoch, total)
    due = []
    for step in range(1, total + 1):
        clock.now += seconds_per_step
        if is_due(step):
            due.append(step)
    return due


def test_steps_alone(clock):
    assert due_steps(4, clock, 1.0) == [4, 8, 12, 16, 20, 24, 25]


def test_each_epoch_where_nothing_is_asked(clock):
    assert due_steps(None, clock, 1000.0) == [10, 20, 25]


def test_time_counts_from_the_last_checkpoint_and_beside_each_epoch(clock):
    assert due_steps("1min", clock, 15.0) == [4, 8, 10, 14, 18, 20, 24, 25]
