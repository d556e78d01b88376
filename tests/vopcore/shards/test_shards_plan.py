"""What is decoded next: nothing twice, nothing lost, the same after any kill."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vopcore.shards import (
    Entry,
    Layout,
    Moment,
    State,
    moment_table,
    moments_in,
    read_index,
    rows_per_shard,
    shard_plan,
    states,
    write_shard,
)
from vopcore.storage import Store
from vopcore.storage.source import FACTS


def moments(num):
    return [Moment(f"v{i:05d}", None, None, None) for i in range(num)]


@given(st.integers(0, 300), st.integers(1, 40), st.data())
def test_a_resumed_plan_is_the_rest_of_the_first_plan(num, rows, data):
    whole = shard_plan(moments(num), [], rows)
    assert [moment for _, group in whole for moment in group] == moments(num)
    committed = data.draw(st.sets(st.sampled_from([number for number, _ in whole]))) if whole else set()
    done = {moment for number, group in whole if number in committed for moment in group}
    left = [moment for moment in moments(num) if moment not in done]
    assert shard_plan(left, committed, rows) == [shard for shard in whole if shard[0] not in committed]


def test_new_videos_go_to_new_shards():
    assert [number for number, _ in shard_plan(moments(10), [0, 1, 2], 4)] == [3, 4, 5]


def test_shards_are_bounded_in_size_and_enough_for_every_cpu():
    megabyte = 2**20
    assert rows_per_shard(20_000, 2 * megabyte, 256, num_cpus=16) == 128
    assert rows_per_shard(100, 2 * megabyte, 256, num_cpus=2) == 13
    assert rows_per_shard(3, 2 * megabyte, 256, num_cpus=16) == 1
    assert rows_per_shard(3, 999 * megabyte, 256, num_cpus=1) == 1


def annotations(*rows):
    schema = pa.schema(
        [("video", pa.string()), ("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
    )
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)


def test_a_video_with_many_captions_is_one_clip():
    table = annotations(("b", "/b", None, None), ("a", "/a", 1.0, 2.0), ("b", "/b", None, None))
    assert moments_in(table) == [Moment("a", "/a", 1.0, 2.0), Moment("b", "/b", None, None)]


def test_an_id_for_two_clips_is_refused():
    with pytest.raises(ValueError, match="video 'a' names two moments"):
        moments_in(annotations(("a", "/a", 1.0, 2.0), ("a", "/a", 2.0, 3.0)))


NOW, LATER, LARGER, GONE = (9, 1.0), (9, 2.0), (10, 2.0), (None, None)


@pytest.fixture
def state_of(tmp_path):
    """The State of the whole of /a, committed with a status when its file had size 9 at time 1."""

    def state(status, facts, path="/a", start=None, size=9):
        entry = Entry(video="a", status=status, source_size=size, source_mtime=size and 1.0)
        write_shard(Store(tmp_path / "shards"), 0, Layout(8, "raw"), [(entry, None)])
        wanted = moment_table(annotations(("a", path, start, None), ("b", "/b", None, None)))
        now = pa.table([[facts[0], 5], [facts[1], 5.0]], schema=FACTS)
        return list(map(State, states(wanted, read_index(Store(tmp_path / "shards")), now)))

    return state


@pytest.mark.parametrize(
    ("status", "facts", "state"),
    [
        ("ok", NOW, State.CURRENT),
        ("ok", LATER, State.TOUCHED),
        ("ok", GONE, State.CURRENT),
        ("ok", LARGER, State.WANTED),
        ("damaged", LATER, State.TOUCHED),
        ("failed", NOW, State.CURRENT),
        ("failed", LATER, State.WANTED),
        ("failed", LARGER, State.WANTED),
        ("failed", GONE, State.WANTED),
    ],
)
def test_frames_stand_until_their_file_changes_and_failures_too(state_of, status, facts, state):
    assert state_of(status, facts) == [state, State.WANTED]


def test_another_moment_of_the_same_file_is_decoded(state_of):
    assert state_of("ok", NOW, start=1.0)[0] is State.WANTED


def test_a_video_without_a_file_is_missing_unless_it_was_decoded(state_of):
    assert state_of("ok", GONE, path=None)[0] is State.CURRENT
    assert state_of("failed", GONE, path=None, size=None)[0] is State.MISSING


def test_a_file_that_was_missing_is_tried_when_it_is_there(state_of):
    assert state_of("failed", GONE, size=None)[0] is State.CURRENT
    assert state_of("failed", NOW, size=None)[0] is State.WANTED


def test_two_times_of_one_change_may_differ_a_little(tmp_path):
    wanted = moment_table(annotations(("a", "/a", None, None)))
    entry = Entry(video="a", status="ok", source_size=9, source_mtime=1.0)
    write_shard(Store(tmp_path), 0, Layout(8, "raw"), [(entry, None)])
    now = pa.table([[9], [1.4]], schema=FACTS)
    assert states(wanted, read_index(Store(tmp_path)), now)[0] == State.TOUCHED
    assert states(wanted, read_index(Store(tmp_path)), now, clock=0.5)[0] == State.CURRENT
