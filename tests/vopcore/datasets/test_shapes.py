"""The quickstart's world: real files, twins that only order tells apart, no pair of the test in training."""

import json
from collections import Counter

import av
import numpy as np
import pytest

from vopcore.datasets import shapes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    done = list(shapes.render(root, videos=80, twins=4, seed=0))
    return root, done, [json.loads(line) for line in (root / "captions.jsonl").read_text().splitlines()]


def decoded(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_every_clip_is_a_file_with_its_caption(corpus):
    root, done, lines = corpus
    assert len(done) == 88
    assert Counter(line["split"] for line in lines) == {"train": 82, "test": 8}
    assert all((root / line["video"]).is_file() and len(line["captions"]) == 1 for line in lines)


def test_the_files_are_what_people_hold(corpus):
    root, _, lines = corpus
    codecs, sound = Counter(), 0
    for line in lines:
        if line["video"].split("/")[1] in ("truncated.mp4", "not_a_video.mp4"):
            continue
        with av.open(str(root / line["video"])) as container:
            codecs[container.streams.video[0].codec_context.name] += 1
            sound += len(container.streams.audio)
    assert set(codecs) == {"h264", "hevc", "vp9", "libvpx-vp9", "mpeg4"} - {
        "vp9" if codecs["libvpx-vp9"] else "libvpx-vp9"
    }
    assert sound > 0
    with av.open(str(root / "videos/test0000.mp4")) as container:
        kinds = {frame.pict_type for frame in container.decode(video=0)}
    assert av.video.frame.PictureType.B in kinds


@pytest.mark.parametrize("broken", ["truncated.mp4", "not_a_video.mp4"])
def test_two_files_cannot_be_decoded(corpus, broken):
    with pytest.raises(av.error.FFmpegError):
        decoded(corpus[0] / "videos" / broken)


def test_a_twin_is_its_clip_played_backwards_with_the_order_swapped(corpus):
    root, _, lines = corpus
    captions = {line["video"]: line["captions"][0] for line in lines}
    for i in range(4):
        clip, twin = f"videos/test{i:04}.mp4", f"videos/test{i:04}_twin.mp4"
        first, second = captions[clip].split(" and then ")
        assert captions[twin] == f"{second} and then {first}"
        a, b = decoded(root / clip).astype(int), decoded(root / twin).astype(int)
        assert len(a) == len(b)
        assert np.abs(a - b[::-1]).mean() < 3  # what the encoder makes of it
        assert np.abs(a - b).mean() > 3 * np.abs(a - b[::-1]).mean()


def test_no_pair_of_balls_is_in_both_splits(corpus):
    pairs = {"train": set(), "test": set()}
    for line in corpus[2][:-2]:
        pairs[line["split"]].add(frozenset(line["captions"][0].split(" and then ")))
    assert not pairs["train"] & pairs["test"]


def test_stills_never_say_when(corpus):
    images, captions = shapes.stills(np.random.default_rng(0), 64, 32)
    assert images.shape == (64, 32, 32, 3)
    assert images.dtype == np.uint8
    assert not any("then" in caption for caption in captions)
    again, same = shapes.stills(np.random.default_rng(0), 64, 32)
    assert np.array_equal(images, again)
    assert captions == same


def middle(image, colour) -> float:
    """Of the pixels that look like the colour, in pixels from the left."""
    likeness = np.abs(image.astype(int) - shapes.COLOURS[colour]).sum(-1)
    return np.nonzero(likeness < 30)[1].mean()


def test_each_still_stands_beside_its_opposite():
    """The first thing that a batch must tell apart is where a ball is."""
    images, captions = shapes.stills(np.random.default_rng(0), 200, 32)
    kinds = Counter()
    for i in range(0, 200, 2):
        words, swapped = captions[i].split(), captions[i + 1].split()
        kinds[len(words)] += 1
        if "left of" in captions[i]:
            assert swapped == words[5:] + words[3:5] + words[:3]
        else:
            assert (words[-1], swapped[-1], swapped[:-1]) == ("left", "right", words[:-1])
            assert middle(images[i], words[1]) < 12
            assert middle(images[i + 1], words[1]) > 20
    assert min(kinds[6], kinds[8]) > 20


@pytest.mark.parametrize("colour", list(shapes.COLOURS))
def test_a_ball_shows_its_colour_where_it_is_put(colour):
    canvas = np.zeros((64, 64, 3), np.uint8)
    shapes.draw(canvas, colour, (40, 24), 12)
    y, x = np.nonzero((canvas == shapes.COLOURS[colour]).all(-1))
    assert len(x) == pytest.approx(np.pi * 12**2, rel=0.1)
    assert abs(x.mean() - 40) < 1
    assert abs(y.mean() - 24) < 1


def test_more_twins_than_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shapes.twins: 66 is out of range, choose 1 to 65"):
        list(shapes.render(tmp_path, 10, 66, 0))
