"""Preprocessing against open_clip's own transform."""

import av
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.video import picture

from vopcore.video.preprocess import Geometry, Preprocessor, resized_shape, upright


def natural_picture(width, height):
    rng = np.random.default_rng(width * height)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 20, (height, width, 3))
    return (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)


SHAPES = [(320, 240), (241, 427), (224, 300), (100, 80), (1280, 536), (1000, 33)]


def squares(rgb, *geometries):
    """One picture as every geometry makes it, the way decoding does."""
    preprocessor = Preprocessor(list(geometries))
    preprocessor.add(0, av.VideoFrame.from_ndarray(rgb, format="rgb24"))
    return preprocessor.finish()[0]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_pixels_are_open_clips_within_rounding(width, height, resize, interpolation):
    rgb = natural_picture(width, height)
    transform = open_clip.image_transform(
        224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=resize, interpolation=interpolation
    )
    theirs = transform(Image.fromarray(rgb)).permute(1, 2, 0).numpy() * 255
    [ours] = squares(rgb, Geometry(224, resize, interpolation))
    assert ours.shape == (224, 224, 3)
    assert ours.dtype == np.uint8
    difference = np.abs(ours - theirs)
    largest, mean = (2, 0.02) if (resize, interpolation) == ("shortest", "bicubic") else (3, 0.3)
    assert difference.max() <= largest
    assert difference.mean() < mean


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_cutting_off_what_the_crop_drops_changes_no_bit(width, height):
    rgb = natural_picture(width, height)
    new_height, new_width = resized_shape(height, width, Geometry(96))
    whole = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    resized = F.interpolate(whole, size=(new_height, new_width), mode="bicubic", antialias=True)
    top, left = round((new_height - 96) / 2), round((new_width - 96) / 2)
    [ours] = squares(rgb, Geometry(96))
    assert np.array_equal(ours, resized[0, :, top : top + 96, left : left + 96].permute(1, 2, 0).numpy())


def test_pictures_resized_side_by_side_are_those_resized_alone():
    shapes = [(160, 96)] * 5 + [(96, 160)] * 3 + [(160, 96)]
    pictures = [picture(number, *shape) for number, shape in enumerate(shapes)]
    preprocessor = Preprocessor([Geometry(64), Geometry(32, "squash")])
    for number, rgb in enumerate(pictures):
        preprocessor.add(number, av.VideoFrame.from_ndarray(rgb, format="rgb24"))
    together = preprocessor.finish()
    for number, rgb in enumerate(pictures):
        for ours, alone in zip(
            together[number], squares(rgb, Geometry(64), Geometry(32, "squash")), strict=True
        ):
            assert np.array_equal(ours, alone)


# Display matrices (16.16 fixed point) and what they do to a picture, row by row as numpy has it.
ONE = 1 << 16
ORIENTATIONS = {
    "as stored": ((ONE, 0, 0, ONE), lambda rgb: rgb),
    "turned left": ((0, -ONE, ONE, 0), lambda rgb: np.rot90(rgb, 1)),
    "turned right": ((0, ONE, -ONE, 0), lambda rgb: np.rot90(rgb, -1)),
    "upside down": ((-ONE, 0, 0, -ONE), lambda rgb: np.rot90(rgb, 2)),
    "hflip": ((-ONE, 0, 0, ONE), lambda rgb: rgb[:, ::-1]),
    "vflip": ((ONE, 0, 0, -ONE), lambda rgb: rgb[::-1]),
    "transposed": ((0, ONE, ONE, 0), lambda rgb: rgb.transpose(1, 0, 2)),
    "transposed the other way": ((0, -ONE, -ONE, 0), lambda rgb: np.rot90(rgb, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_display_matrix_turns_and_mirrors(name):
    (a, b, c, d), expected = ORIENTATIONS[name]
    matrix = np.array([[a, b, 0], [c, d, 0], [0, 0, 1 << 30]], np.int32)
    rgb = picture(1234, 96, 64)
    assert np.array_equal(upright(rgb, matrix), expected(rgb))
