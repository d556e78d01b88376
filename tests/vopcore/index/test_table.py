"""The engines against brute force, through additions, renewals, deletions and torn updates."""

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.moments import DIMENSION, brute_force, moments, unit_query, video

from vopcore.index import BadIndexError
from vopcore.index.table import ArrowMoments
from vopcore.storage import Store


def opened(folder) -> ArrowMoments:
    return ArrowMoments(Store(folder), DIMENSION)


def opened_lance(folder):
    pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install -e '.[search]'")
    from vopcore.index.lance import LanceMoments

    return LanceMoments(Store(folder), DIMENSION)


ENGINES = [opened, opened_lance]


def fill(table: ArrowMoments, *names: str, seed: int = 0) -> dict:
    stored = {name: moments(30 + 3 * i, seed + i) for i, name in enumerate(names)}
    table.add([(video(name, 30 + 3 * i), stored[name]) for i, name in enumerate(names)])
    return stored


def nearest(table: ArrowMoments, query, count: int, is_picked=None) -> list[tuple[str, float]]:
    found = table.nearest(query, count, is_picked)
    names = [table.videos[number].video for number in found.videos]
    return list(zip(names, found.starts.tolist(), strict=True))


def expected(stored: dict, query, count: int, names=None) -> list[tuple[str, float]]:
    return [(name, start) for _, name, start in brute_force(stored, query.numpy(), names)[:count]]


@pytest.mark.parametrize("opened", ENGINES)
def test_the_nearest_windows_are_those_of_brute_force(tmp_path, opened):
    table = opened(tmp_path)
    stored = fill(table, "a", "b", "c") | fill(table, "d", "e", seed=10)
    for seed in range(5):
        assert nearest(table, unit_query(seed), 7) == expected(stored, unit_query(seed), 7)
    assert table.num_moments == sum(len(windows.spans) for windows in stored.values())


@pytest.mark.parametrize("opened", ENGINES)
def test_only_picked_videos_are_looked_at(tmp_path, opened):
    table = opened(tmp_path)
    stored = fill(table, "a", "b", "c", "d")
    is_picked = np.array([True, False, False, True])
    assert nearest(table, unit_query(0), 100, is_picked) == expected(stored, unit_query(0), 100, ["a", "d"])


@pytest.mark.parametrize("opened", ENGINES)
def test_a_renewed_video_answers_with_its_new_windows_and_a_dropped_one_not_at_all(tmp_path, opened):
    table = opened(tmp_path)
    stored = fill(table, "a", "b", "c")
    stored |= fill(table, "b", seed=40)
    table.drop(["c"])
    del stored["c"]
    for again in (table, opened(tmp_path)):
        assert [entry.video for entry in again.videos] == ["a", "b"]
        assert nearest(again, unit_query(1), 100) == expected(stored, unit_query(1), 100)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["add", "drop", "tidy"]), st.sampled_from("abcd")), max_size=14))
def test_any_order_of_changes_leaves_what_a_dict_would_hold(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("index")
    table = opened(folder)
    stored = {}
    for seed, (change, name) in enumerate(changes):
        if change == "add":
            stored[name] = moments(20, seed)
            table.add([(video(name, 20), stored[name])])
        elif change == "drop":
            stored.pop(name, None)
            table.drop([name])
        else:
            table.tidy()
    assert sorted(entry.video for entry in table.videos) == sorted(stored)
    assert nearest(table, unit_query(0), 100) == expected(stored, unit_query(0), 100)
    assert nearest(opened(folder), unit_query(0), 100) == expected(stored, unit_query(0), 100)


def test_many_small_updates_are_written_together(tmp_path):
    table = opened(tmp_path)
    stored = {}
    for number in range(12):
        stored |= fill(table, f"v{number}", seed=number)
    table.tidy()
    assert len(list(tmp_path.glob("*.videos.arrow"))) == 1
    assert nearest(table, unit_query(2), 100) == expected(stored, unit_query(2), 100)


def test_an_update_that_was_killed_before_its_list_of_videos_never_happened(tmp_path):
    table = opened(tmp_path)
    stored = fill(table, "a")
    for kind in ("moments", "frames"):
        shutil.copy(tmp_path / f"000001.{kind}.arrow", tmp_path / f"000002.{kind}.arrow")
    again = opened(tmp_path)
    assert nearest(again, unit_query(0), 100) == expected(stored, unit_query(0), 100)
    again.tidy()
    assert sorted(path.name for path in tmp_path.glob("*000002*")) == []
    fill(again, "b", seed=3)
    assert [entry.video for entry in opened(tmp_path).videos] == ["a", "b"]


def test_a_reader_sees_an_update_and_keeps_what_it_has_mapped(tmp_path):
    writer = opened(tmp_path)
    stored = fill(writer, "a", "b")
    reader = opened(tmp_path)
    for number in range(10):
        fill(writer, "b", seed=100 + number)
    writer.tidy()
    assert nearest(reader, unit_query(0), 100) == expected(stored, unit_query(0), 100)
    assert reader.refresh()
    assert not reader.refresh()
    stored |= {"b": moments(30, 109)}
    assert nearest(reader, unit_query(0), 100) == expected(stored, unit_query(0), 100)


@pytest.mark.parametrize("opened", ENGINES)
def test_what_belongs_to_a_window_is_found_again(tmp_path, opened):
    table = opened(tmp_path)
    fill(table, "z", seed=9)
    stored = fill(table, "a", "b")
    number = table.numbers["b"]
    row = table.window_at(number, 4.0)
    assert table.window_at(number, 6.5) == row
    windows = stored["b"]
    assert table.thumbnail(row) == windows.thumbnails[1]
    for time in (0.0, 5.0, 7.0, 100.0):
        shown = int(np.abs(windows.best - time).argmin())
        assert table.thumbnail(table.picture_at(number, time)) == windows.thumbnails[shown]
    np.testing.assert_array_equal(table.vector(row).numpy(), windows.vectors[1].astype(np.float32))
    np.testing.assert_array_equal(
        table.window_frames(row).numpy(), windows.features[windows.frames[1]].astype(np.float32)
    )
    times, features = table.frames_between(number, 8, 12)
    inside = np.flatnonzero((windows.times >= 8) & (windows.times <= 12))
    order = inside[np.argsort(windows.times[inside], kind="stable")]
    np.testing.assert_array_equal(times, windows.times[order])
    np.testing.assert_array_equal(features.numpy(), windows.features[order].astype(np.float32))


@pytest.mark.parametrize("opened", ENGINES)
def test_a_failed_video_is_listed_with_its_reason(tmp_path, opened):
    table = opened(tmp_path)
    table.add([(video("bad.mp4", 0, status="failed", error="no video stream"), None)])
    fill(table, "a")
    again = opened(tmp_path)
    assert [(entry.video, entry.error) for entry in again.failed] == [("bad.mp4", "no video stream")]
    assert [entry.video for entry in again.videos] == ["a"]


@pytest.mark.parametrize("kind", ["videos", "moments", "frames"])
def test_a_damaged_file_is_named(tmp_path, kind):
    fill(opened(tmp_path), "a")
    path = tmp_path / f"000001.{kind}.arrow"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadIndexError, match=f"000001.{kind}.arrow"):
        opened(tmp_path)


@pytest.mark.parametrize("opened", ENGINES)
def test_an_empty_index_answers_nothing(tmp_path, opened):
    table = opened(tmp_path)
    assert len(table.nearest(unit_query(0), 10, None).rows) == 0
    table.drop(["nobody"])
    table.tidy()
    assert len(table.nearest(unit_query(0), 10, np.zeros(0, bool)).rows) == 0


def test_clusters_of_vectors_find_what_brute_force_finds_also_what_came_after_them(tmp_path, monkeypatch):
    pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install -e '.[search]'")
    monkeypatch.setattr("vopcore.index.lance.INDEX_FROM", 300)
    monkeypatch.setattr("vopcore.index.lance.ROWS_PER_PARTITION", 40)
    table = opened_lance(tmp_path)
    stored = fill(table, *(f"v{number:02}" for number in range(25)))
    table.tidy()
    assert table._moments.list_indices()
    stored |= fill(table, "late", seed=77)
    for again in (table, opened_lance(tmp_path)):
        assert nearest(again, unit_query(4), 10) == expected(stored, unit_query(4), 10)
        table.tidy()


def test_moments_of_an_update_that_was_killed_before_its_list_of_videos_do_not_count(tmp_path):
    table = opened_lance(tmp_path)
    stored = fill(table, "a", "b")
    # `add` writes the list of videos last.
    table._videos.delete("video = 'b'")
    del stored["b"]
    again = opened_lance(tmp_path)
    assert nearest(again, unit_query(0), 100) == expected(stored, unit_query(0), 100)
    again.tidy()
    assert again.num_moments == len(stored["a"].spans)
    stored |= fill(again, "b", seed=5)
    assert nearest(again, unit_query(0), 100) == expected(stored, unit_query(0), 100)
