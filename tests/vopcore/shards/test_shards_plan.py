"""What is decoded next: nothing twice, nothing lost, the same after any kill."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from vopcore.shards import Entry, Moment, is_current, moments_in, rows_per_shard, shard_plan
from vopcore.storage import SourceFacts, source_facts


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


MOMENT = Moment("a", "/a", None, None)
NOW, LATER, LARGER, GONE = (
    SourceFacts(9, 1.0),
    SourceFacts(9, 2.0),
    SourceFacts(10, 2.0),
    SourceFacts(None, None),
)


@pytest.mark.parametrize(
    ("status", "moment", "facts", "current"),
    [
        ("ok", MOMENT, NOW, True),
        ("ok", MOMENT, LATER, True),
        ("ok", MOMENT, GONE, True),
        ("ok", MOMENT, None, True),
        ("damaged", MOMENT, LATER, True),
        ("ok", MOMENT, LARGER, False),
        ("ok", MOMENT._replace(start=1.0, end=2.0), NOW, False),
        ("failed", MOMENT, NOW, True),
        ("failed", MOMENT, LATER, False),
        ("failed", MOMENT, LARGER, False),
    ],
)
def test_frames_stand_until_the_file_has_another_size_and_failures_until_it_changes(
    status, moment, facts, current
):
    entry = Entry(video="a", status=status, source_size=9, source_mtime=1.0)
    assert is_current(entry, moment, facts) is current


def test_a_file_that_was_missing_is_tried_when_it_is_there(tmp_path):
    path = tmp_path / "a.mp4"
    entry = Entry(video="a", status="failed")
    assert is_current(entry, MOMENT, source_facts(LocalFileSystem(), str(path)))
    path.write_bytes(b"now")
    facts = source_facts(LocalFileSystem(), str(path))
    assert facts == (3, pytest.approx(path.stat().st_mtime))
    assert not is_current(entry, MOMENT, facts)
