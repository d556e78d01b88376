"""A video or a photo as a query."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageOps

from vopcore.index.example import read_photo
from vopcore.tuned_model import ModelSettings

SETTINGS = ModelSettings("conf/tiny_clip.json", None, 0, 16, 4, 4, 32, "uniform")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_photo_is_resized_as_the_frames_of_the_index(tmp_path, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    photo = Image.fromarray(pixels)
    photo.save(tmp_path / "photo.png")
    kernel = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]

    cropped = dataclasses.replace(SETTINGS, interpolation=interpolation)
    expected = np.asarray(ImageOps.fit(photo, (32, 32), kernel))
    assert np.array_equal(read_photo(tmp_path / "photo.png", cropped), expected)

    squashed = dataclasses.replace(cropped, resize="squash")
    expected = np.asarray(photo.resize((32, 32), kernel))
    assert np.array_equal(read_photo(tmp_path / "photo.png", squashed), expected)
