"""Thumbnails show the whole frame, upright and small, whatever the CLIP sees of it."""

import numpy as np
import pytest
import simplejpeg
from support.video import number_in, picture, write_video

from vopcore.video import decode_moments
from vopcore.video.thumbnail import thumbnail_shape


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])  # frames that are planned, and frames that are counted
def test_each_frame_has_a_thumbnail_of_the_whole_of_it(tmp_path, suffix):
    codec = "libx264" if suffix == ".mp4" else "mpeg4"
    file = write_video(tmp_path / f"a{suffix}", 40, codec=codec, width=640, height=360, rate=10)
    windows = [(0.0, 2.0), (1.0, 3.0)]
    with_thumbnails = decode_moments(file, windows, count=4, size=32, thumbnails=True)
    without = decode_moments(file, windows, count=4, size=32)

    for moment, plain in zip(with_thumbnails, without, strict=True):
        np.testing.assert_array_equal(moment.pixels, plain.pixels)
        assert plain.thumbnails == []
        assert len(moment.thumbnails) == 4
        for time, thumbnail in zip(moment.times, moment.thumbnails, strict=True):
            seen = simplejpeg.decode_jpeg(thumbnail)
            assert seen.shape == (180, 320, 3)
            number = round(time * 10)
            middle = seen[:, 70:250]
            assert number_in(middle) == number
            shrunk = picture(number, 640, 360).reshape(180, 2, 320, 2, 3).mean(axis=(1, 3))
            assert np.abs(seen - shrunk).mean() < 12
    shared = set(with_thumbnails[0].thumbnails) & set(with_thumbnails[1].thumbnails)
    assert len(shared) == 2


def test_a_thumbnail_of_a_turned_video_stands_upright(tmp_path):
    file = write_video(tmp_path / "a.mp4", 5, width=640, height=360, rotation=90)
    (moment,) = decode_moments(file, [(None, None)], count=1, size=180, thumbnails=True)
    seen = simplejpeg.decode_jpeg(moment.thumbnails[0])
    assert seen.shape == (320, 180, 3)
    # what the CLIP sees is the middle of it
    assert np.abs(seen[70:250].astype(int) - moment.pixels[0]).mean() < 6


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((1080, 1920), (180, 320)), ((1920, 1080), (320, 180)), ((64, 64), (64, 64)), ((4000, 2), (4000, 2))],
)
def test_the_short_side_is_180_and_nothing_is_enlarged(shape, wanted):
    assert thumbnail_shape(*shape) == wanted
