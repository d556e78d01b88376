"""Preprocessing against open_clip's own transform."""

import av
import numpy as np
import open_clip
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image
from support.video import number_in, picture

from vopcore.video.preprocess import preprocess, upright


def natural_picture(width, height):
    rng = np.random.default_rng(width * height)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 20, (height, width, 3))
    return (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("width", "height"), [(320, 240), (241, 427), (224, 300), (100, 80), (1280, 536)])
def test_pixels_are_open_clips_within_2_of_255(width, height):
    rgb = natural_picture(width, height)
    transform = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    theirs = transform(Image.fromarray(rgb)).permute(1, 2, 0).numpy() * 255
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    ours = preprocess(frame, 224, VideoReformatter())
    assert ours.shape == (224, 224, 3)
    difference = np.abs(ours - theirs)
    assert difference.max() <= 2
    assert difference.mean() < 0.02


def test_rotation_is_counter_clockwise():
    rgb = picture(1234, 96, 96)
    turned = np.rot90(rgb, -1)
    assert number_in(turned) != 1234
    assert number_in(upright(turned, 90)) == 1234
    assert number_in(upright(np.rot90(rgb, 2), -180)) == 1234
