"""What an index answers: windows of brute force, merged, refined, grouped; the same in each way of asking."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.moments import HEADER, brute_force, moments, unit_query, video

from vopcore.index import (
    BadIndexError,
    Index,
    MomentRows,
    Question,
    check_same,
    open_index,
    write_header,
)
from vopcore.index.table import ArrowMoments
from vopcore.retriever import query_aware_similarity
from vopcore.storage import Store


def made(folder, stored: dict[str, MomentRows], header=HEADER) -> Index:
    store = Store(folder)
    write_header(store, header)
    table = ArrowMoments(store, header.dimension)
    table.add([(video(name, windows.spans[-1].end), windows) for name, windows in stored.items()])
    return open_index(str(folder))


def scene(duration: float, start: float, end: float) -> MomentRows:
    """A video whose frames, one a second, point one way from `start` to `end` and another way elsewhere."""
    times = np.arange(0.5, duration)
    features = np.tile(np.eye(16)[0], (len(times), 1))
    features[(times >= start) & (times < end)] = np.eye(16)[1]
    spans = HEADER.rule.windows(duration)
    frames = [np.flatnonzero((times >= span.start) & (times < span.end)).tolist() for span in spans]
    vectors = np.stack([features[rows].mean(axis=0) for rows in frames])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return MomentRows(
        spans=spans,
        best=np.zeros(len(spans), np.float32),
        vectors=vectors.astype(np.float16),
        features=features.astype(np.float16),
        times=times.astype(np.float32),
        frames=frames,
        thumbnails=[b"" for _ in spans],
    )


def asked(axis: int, **changes) -> Question:
    return Question(features=3 * torch.eye(16)[axis], **changes)


@pytest.mark.parametrize(("start", "end"), [(20, 35), (3, 6), (0, 10), (50, 60)])
def test_the_seconds_that_match_are_found_to_the_frame(tmp_path, start, end):
    index = made(tmp_path, {"a.mp4": scene(60, start, end), "b.mp4": scene(60, 0, 0)})
    best = index.search(asked(1, top=1))[0]
    assert (best.video, best.start, best.end) == ("a.mp4", start, end)
    assert start <= best.best <= end


def test_two_scenes_of_one_video_are_two_answers_unless_grouped(tmp_path):
    scenes = scene(100, 10, 20)
    features = scenes.features.copy()
    late = (scenes.times >= 60) & (scenes.times < 75)
    features[late] = np.eye(16)[1]
    vectors = np.stack([features[rows].astype(np.float32).mean(axis=0) for rows in scenes.frames])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    twice = dataclasses.replace(scenes, features=features, vectors=vectors.astype(np.float16))
    index = made(tmp_path, {"a": twice, "b": scene(100, 0, 0)})

    answers = index.search(asked(1, top=2))
    assert sorted((answer.start, answer.end) for answer in answers) == [(10, 20), (60, 75)]
    grouped = index.search(asked(1, top=5, by_video=True))
    assert [answer.video for answer in grouped] == ["a", "b"]


def test_scores_are_the_products_of_the_stored_vectors(tmp_path):
    stored = {name: moments(40, seed) for seed, name in enumerate("abcdef")}
    index = made(tmp_path, stored)
    for seed in range(5):
        query = unit_query(seed)
        answers = index.search(Question(features=7 * query, top=3))
        score, name, _ = brute_force(stored, query.numpy())[0]
        assert answers[0].video == name
        assert answers[0].score == pytest.approx(score, abs=1e-6)
        assert [answer.score for answer in answers] == sorted((a.score for a in answers), reverse=True)


def test_query_aware_scores_are_those_of_the_paper_over_the_frames_of_each_window(tmp_path):
    stored = {name: moments(40, seed) for seed, name in enumerate("abcd")}
    index = made(tmp_path, stored, dataclasses.replace(HEADER, pooling="query_aware"))
    query = 4 * unit_query(3)
    every = []
    for name, windows in stored.items():
        frames = torch.from_numpy(np.stack([windows.features[rows] for rows in windows.frames])).float()
        for score in query_aware_similarity(query[None], frames, None)[0].tolist():
            every.append((score, name))
    best = max(every)
    answer = index.search(Question(features=query, top=1))[0]
    assert answer.video == best[1]
    assert answer.score == pytest.approx(best[0], abs=1e-5)


def test_more_answers_than_the_first_candidates_hold_are_still_found(tmp_path):
    near = F.normalize(torch.eye(16)[1] + 0.01, dim=0).numpy()
    crowd = scene(4000, 0, 4000)
    stored = {"crowd": dataclasses.replace(crowd, vectors=np.tile(near, (len(crowd.spans), 1)).astype("f2"))}
    stored |= {f"v{i}": moments(8, i) for i in range(8)}
    index = made(tmp_path, stored)
    answers = index.search(asked(1, top=9, by_video=True))
    assert sorted(answer.video for answer in answers) == sorted(stored)


def test_a_short_video_is_answered_whole_with_its_best_frame(tmp_path):
    index = made(tmp_path, {"a": scene(10, 6, 8)})
    answer = index.search(asked(1))[0]
    assert (answer.start, answer.end, answer.best) == (0, 10, 6.5)


def test_a_window_is_an_example_for_others_like_it(tmp_path):
    index = made(tmp_path, {"a": scene(60, 20, 40), "b": scene(60, 4, 24), "c": scene(60, 0, 0)})
    example = index.like("b", 8.0)
    answers = index.search(Question(features=example, is_example=True, top=2))
    spans = [(answer.video, answer.start, answer.end) for answer in answers]
    assert sorted(spans) == [("a", 20, 40), ("b", 4, 24)]
    with pytest.raises(KeyError):
        index.like("../b", 0)


def test_a_picked_video_alone_answers_and_a_change_is_seen_after_a_refresh(tmp_path):
    index = made(tmp_path, {"x/a": scene(60, 20, 40), "b": scene(60, 4, 24)})
    picked = index.filter.pick("folder = 'x'")
    assert {answer.video for answer in index.search(asked(1, is_picked=picked))} == {"x/a"}
    ArrowMoments(index.store, 16).drop(["x/a"])
    assert index.refresh()
    assert {answer.video for answer in index.search(asked(1))} == {"b"}
    assert index.filter.folders() == [""]


def test_an_index_that_is_none_or_of_another_version_is_refused_in_a_line(tmp_path):
    with pytest.raises(BadIndexError, match=r"no index here \(index.json is missing\); make one with"):
        open_index(str(tmp_path))
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(BadIndexError, match=r"index.json: cannot be read"):
        open_index(str(tmp_path))
    (tmp_path / "index.json").write_text(json.dumps(dataclasses.asdict(HEADER) | {"version": 7}))
    with pytest.raises(BadIndexError, match="an index of version 7, this program reads 1"):
        open_index(str(tmp_path))
    (tmp_path / "index.json").write_text(json.dumps(dataclasses.asdict(HEADER) | {"extra": 7}))
    with pytest.raises(BadIndexError, match=r"not as it was written \(extra\)"):
        open_index(str(tmp_path))


def test_an_index_that_does_not_say_how_pictures_were_resized_has_openais_way(tmp_path):
    values = dataclasses.asdict(HEADER)
    del values["resize"], values["interpolation"]
    (tmp_path / "index.json").write_text(json.dumps(values))
    check_same(Store(tmp_path), HEADER)
    with pytest.raises(BadIndexError, match="this index has resize shortest, now it is squash"):
        check_same(Store(tmp_path), dataclasses.replace(HEADER, resize="squash"))


@pytest.mark.parametrize(("key", "value"), [("tuned", "0" * 64), ("root", "/other"), ("every", 2.0)])
def test_an_index_of_other_weights_videos_or_windows_is_refused_by_name(tmp_path, key, value):
    store = Store(tmp_path)
    write_header(store, HEADER)
    check_same(store, HEADER)
    with pytest.raises(BadIndexError, match=f"this index has {key} .* choose another folder with index="):
        check_same(store, dataclasses.replace(HEADER, **{key: value}))
