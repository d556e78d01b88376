"""Captions are tokenised once, frames are copied into their place, and text lengths are few."""

import numpy as np
import torch
from support.methods import batch, tuned_clip
from support.tuning import CAPTIONS, make_shards, tokenize

from vopcore.clip import text_length
from vopcore.training.batches import Captions, TrainingBatches, stack_frames


def test_each_caption_is_tokenised_once_in_a_run(tmp_path):
    asked = []

    def counted(texts):
        asked.extend(texts)
        return tokenize(texts)

    shards = make_shards(tmp_path)
    options = {"frames": 4, "batch_size": 8, "draw": "all", "seed": 0}
    batches = TrainingBatches(shards, CAPTIONS, counted, **options)
    torch.set_num_threads(1)  # one reader: two may ask for the same caption at the same time
    for epoch in range(3):
        for one in batches.epoch(epoch):
            assert torch.equal(one.tokens, tokenize(one.captions))
    assert len(asked) == len(set(asked))


def test_tokens_of_a_large_vocabulary_survive_being_kept():
    def tokenize_large(texts):
        return torch.full((len(texts), 3), 250_001)

    assert Captions(tokenize_large).tokens(["a", "a"]).tolist() == [[250_001] * 3] * 2


def test_frames_are_written_to_their_place_from_raw_and_jpeg_shards_alike(tmp_path):
    shards = make_shards(tmp_path, short=1)
    videos = ["v000", "v005"]
    frames, mask = stack_frames(shards, videos, 4, [None, None])
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert not frames[0, 2:].any()
    for row, video in enumerate(videos):
        count = int(mask[row].sum())
        stored = shards.frames(video)
        for frame in frames[row, :count]:
            assert any(np.array_equal(frame.permute(1, 2, 0).numpy(), other) for other in stored)


def test_a_batch_of_texts_is_read_to_its_longest_in_steps_of_eight():
    clip = tuned_clip("vop").train()
    _, tokens = batch(3)  # ends at 4, 5 and 6
    assert text_length(clip, tokens) == 7
    assert text_length(clip, tokens, multiple=8) == 8
    assert text_length(clip, tokens, multiple=100) == tokens.shape[1]
