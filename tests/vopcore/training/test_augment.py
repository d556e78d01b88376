"""Crops against torch's own resizing, and what they may depend on."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.tuning import CAPTIONS, SIZE, make_shards, tokenize

from vopcore.training.augment import AREA, ASPECT, crop, draw_crop
from vopcore.training.batches import TrainingBatches


def test_a_crop_is_cut_resized_and_flipped_as_torch_does_it():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (4, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    crops = torch.tensor([[0, 0, 32, 32, 0], [3, 7, 23, 25, 0], [9, 0, 23, 32, 1], [0, 0, 32, 32, 1]])
    got = crop(frames, crops)
    for video, cut, (top, left, height, width, flip) in zip(frames, got, crops.tolist(), strict=True):
        part = video[..., top : top + height, left : left + width].float()
        wanted = F.interpolate(part, size=(32, 32), mode="bilinear", align_corners=False)
        wanted = wanted.flip(-1) if flip else wanted
        assert (cut.float() - wanted).abs().max() <= 0.501  # rounded to whole levels
    assert torch.equal(got[0], frames[0])
    assert torch.equal(got[3], frames[3].flip(-1))


def test_crops_cover_half_to_all_of_the_square_and_half_of_them_are_flipped():
    drawn = np.array([draw_crop(np.random.default_rng([0, i]), 224) for i in range(4000)])
    top, left, height, width, flip = drawn.T
    assert ((top >= 0) & (top + height <= 224) & (left >= 0) & (left + width <= 224)).all()
    area, aspect = height * width / 224**2, width / height
    assert AREA[0] - 0.01 < area.min() < 0.52
    assert 0.97 < area.max() <= 1
    assert ASPECT[0] - 0.01 < aspect.min() < 0.77 < 1.3 < aspect.max() < ASPECT[1] + 0.01
    assert flip.mean() == pytest.approx(0.5, abs=0.03)
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.01)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"))


def crops(shards, epoch, start=0, **changes):
    """The crop of each video of an epoch."""
    options = {"frames": 4, "batch_size": 8, "draw": "one", "seed": 0, "augment": True} | changes
    batches = TrainingBatches(shards, CAPTIONS, tokenize, **options).epoch(epoch, start)
    return {v: c for batch in batches for v, c in zip(batch.videos, batch.crops.tolist(), strict=True)}


def test_a_crop_depends_on_seed_epoch_and_video_not_on_workers_or_where_a_run_starts(shards):
    whole = crops(shards, 1)
    assert len(whole) == 24
    assert len(set(map(tuple, whole.values()))) > 12
    parts = [crops(shards, 1, rank=rank, workers=2) for rank in range(2)]
    assert parts[0] | parts[1] == whole
    assert crops(shards, 1, start=1).items() < whole.items()
    assert crops(shards, 2) != whole
    assert crops(shards, 1, seed=1) != whole
    assert all(height <= SIZE for _, _, height, _, _ in whole.values())
