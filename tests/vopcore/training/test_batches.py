"""Batches are seeded, equal for all workers, complete, and never hold a video twice."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.late_files import Together, late_shards
from support.tuning import CAPTIONS, STORED, make_shards, tokenize

from vopcore.training.batches import ANNOUNCED, TrainingBatches, num_batches, spread


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), videos=24, short=3)


def make(shards, draw="one", captions=CAPTIONS, **changes):
    options = {"frames": 4, "batch_size": 8, "draw": draw, "seed": 0} | changes
    return TrainingBatches(shards, captions, tokenize, **options)


def same(a, b) -> bool:
    return (
        a.videos == b.videos
        and torch.equal(a.frames, b.frames)
        and torch.equal(a.mask, b.mask)
        and torch.equal(a.tokens, b.tokens)
    )


def most_batches(counts, size):
    """Brute force: fill batches greedily with the videos that have most pairs left."""
    left, batches = Counter(dict(enumerate(counts))), 0
    while True:
        best = [video for video, count in left.most_common(size) if count]
        if len(best) < size:
            return batches
        left.subtract(best)
        batches += 1


@given(st.lists(st.integers(1, 12), min_size=1, max_size=25), st.integers(1, 12), st.integers(0, 5))
def test_pairs_are_dealt_to_as_many_full_batches_as_can_be_without_a_video_twice(counts, size, seed):
    batches = spread(counts, size, np.random.default_rng(seed))
    assert len(batches) == num_batches(counts, size) == most_batches(counts, size)
    pairs = [pair for batch in batches for pair in batch]
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= c < counts[v] for v, c in pairs)
    for batch in batches:
        assert len({v for v, _ in batch}) == len(batch) == size


def test_the_number_of_batches_of_a_million_pairs_is_found_at_once():
    """One video with very many captions made the old count go down one by one, each time over all videos."""
    counts = [500_000, *[1] * 500_000]
    assert num_batches(counts, 3) == 250_000


def test_one_caption_of_every_video_in_an_epoch_and_another_draw_in_the_next(shards):
    batches = make(shards)
    first = [list(batches.epoch(e)) for e in range(2)]
    for epoch in first:
        assert sorted(v for batch in epoch for v in batch.videos) == sorted(CAPTIONS)
    orders = [[v for batch in epoch for v in batch.videos] for epoch in first]
    assert orders[0] != orders[1]
    tokens = [
        dict(zip(o, torch.cat([b.tokens for b in e])[:, 1].tolist(), strict=True))
        for o, e in zip(orders, first, strict=True)
    ]
    assert any(tokens[0][v] != tokens[1][v] for v in CAPTIONS if len(CAPTIONS[v]) > 1)
    for v, texts in CAPTIONS.items():
        assert tokens[0][v] in tokenize(texts)[:, 1]


def test_every_pair_in_an_epoch_when_all_captions_are_asked_for(shards):
    even = {video: [f"caption {10 * i + c}" for c in range(3)] for i, video in enumerate(CAPTIONS)}
    batches = make(shards, "all", captions=even)
    assert batches.steps_per_epoch == 9
    seen = Counter()
    for batch in batches.epoch(0):
        assert len(set(batch.videos)) == 8
        seen.update(zip(batch.videos, batch.tokens[:, 1].tolist(), strict=True))
    assert seen == Counter(
        (v, token) for v, texts in even.items() for token in tokenize(texts)[:, 1].tolist()
    )


def test_a_batch_holds_a_video_twice_only_when_asked_and_still_every_pair_once(shards):
    few = {video: [f"caption {10 * i + c}" for c in range(12)] for i, video in enumerate(list(CAPTIONS)[:4])}
    batches = make(shards, "all", captions=few, repeat_videos=True)
    assert batches.steps_per_epoch == 6
    epoch = list(batches.epoch(0))
    assert all(len(set(batch.videos)) < 8 for batch in epoch)
    seen = Counter((v, t) for b in epoch for v, t in zip(b.videos, b.tokens[:, 1].tolist(), strict=True))
    assert seen == Counter((v, t) for v, texts in few.items() for t in tokenize(texts)[:, 1].tolist())
    with pytest.raises(ValueError, match="more than the 4 videos"):
        make(shards, "all", captions=few)


@pytest.mark.parametrize("draw", ["one", "all"])
def test_the_global_batch_does_not_depend_on_the_number_of_workers(shards, draw):
    alone = list(make(shards, draw).epoch(1))
    parts = [list(make(shards, draw, rank=rank, workers=2).epoch(1)) for rank in range(2)]
    for whole, left, right in zip(alone, *parts, strict=True):
        assert whole.videos == left.videos + right.videos
        assert torch.equal(whole.frames, torch.cat([left.frames, right.frames]))
        assert torch.equal(whole.tokens, torch.cat([left.tokens, right.tokens]))


def test_going_on_in_the_middle_of_an_epoch_gives_the_batches_that_were_left(shards):
    whole = list(make(shards).epoch(3))
    rest = list(make(shards).epoch(3, start=1))
    assert len(rest) == len(whole) - 1
    assert all(same(a, b) for a, b in zip(whole[1:], rest, strict=True))


def test_several_epochs_are_one_after_the_other(shards):
    expected = list(make(shards).epoch(1, start=2))
    for epoch in (2, 3):
        expected += make(shards).epoch(epoch)
    together = list(make(shards).epochs(1, 4, start=2))
    assert all(same(a, b) for a, b in zip(together, expected, strict=True))


def test_another_seed_gives_other_batches(shards):
    assert [b.videos for b in make(shards).epoch(0)] != [b.videos for b in make(shards, seed=1).epoch(0)]


def test_short_videos_are_masked_and_padded_with_zeros(shards):
    for batch in make(shards).epoch(0):
        for video, frames, mask in zip(batch.videos, batch.frames, batch.mask, strict=True):
            real = 2 if video in ("v000", "v001", "v002") else 4
            assert mask.tolist() == [True] * real + [False] * (4 - real)
            assert not frames[real:].any()
            stored = torch.from_numpy(shards.frames(video).copy()).permute(0, 3, 1, 2)
            assert all(any(torch.equal(frame, s) for s in stored) for frame in frames[:real])


def test_training_sees_different_stored_frames_in_different_epochs(shards):
    assert STORED > 4
    looks = []
    for epoch in range(4):
        for batch in make(shards).epoch(epoch):
            if "v010" in batch.videos:
                looks.append(batch.frames[batch.videos.index("v010")])
    assert any(not torch.equal(looks[0], look) for look in looks[1:])


def test_a_batch_larger_than_the_training_set_is_refused_with_both_numbers(shards):
    with pytest.raises(ValueError, match=r"train.batch_size: 25 is more than the 24 videos"):
        make(shards, batch_size=25)


def test_a_reader_that_stops_early_leaves_no_thread_behind(shards):
    import threading

    before = threading.active_count()
    reading = make(shards).epoch(0)
    next(reading)
    reading.close()
    for thread in threading.enumerate()[before:]:
        thread.join(5)
    assert threading.active_count() == before


def test_an_error_while_reading_ahead_reaches_the_reader(shards):
    batches = make(shards, captions={**CAPTIONS, "nowhere": ["caption 1"]}, batch_size=25)
    with pytest.raises(KeyError, match="nowhere"):
        list(batches.epoch(0))


def test_the_files_of_coming_batches_are_asked_for_before_they_are_read(shards, monkeypatch):
    announced, unannounced = [], []
    read = shards.frames

    def frames(video, *arguments, **options):
        unannounced.extend({video} - set(announced))
        return read(video, *arguments, **options)

    monkeypatch.setattr(shards, "prefetch", announced.extend)
    monkeypatch.setattr(shards, "frames", frames)
    batches = make(shards, batch_size=2).epoch(0)
    next(batches)
    assert len(announced) >= 2 * ANNOUNCED
    list(batches)
    assert unannounced == []
    assert sorted(announced) == sorted(CAPTIONS), "each once"


def test_threads_read_a_bucket_that_answers_late_side_by_side(shards, tmp_path):
    """No read is answered before four are under way: of one thread after the other none would ever be."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        together = Together(4)
        late = late_shards(shards._store.folder, tmp_path, together)
        batches = list(make(late, batch_size=4).epoch(0))
    finally:
        torch.set_num_threads(threads_before)

    assert together.has_happened.is_set()
    expected = list(make(shards, batch_size=4).epoch(0))
    assert len(batches) == len(expected)
    assert all(same(batch, other) for batch, other in zip(batches, expected, strict=True))
