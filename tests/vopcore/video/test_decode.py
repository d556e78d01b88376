"""Decoding real files of every awkward kind against plain sequential decoding of the same file."""

import struct

import av
import numpy as np
import pytest
from PIL import Image
from support.video import number_in, numbers, picture, write_silence, write_video

from vopcore.video import VideoError, decode, decode_moments
from vopcore.video import source as source_module
from vopcore.video.preprocess import Preprocessor
from vopcore.video.sample import SAMPLERS, uniform

QUIET_X265 = {"x265-params": "log-level=none:open-gop=1:keyint=12:min-keyint=12:bframes=3"}
KINDS = {
    "b_frames.mp4": {},
    "matroska.mkv": {"b_frames": 3},
    "open_group.mp4": {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=20"}},
    "interlaced.ts": {"options": {"x264-params": "interlaced=1:bframes=3"}},
    "transport.ts": {},
    "program.mpg": {"codec": "mpeg2video"},
    "decoding_times.avi": {"codec": "mpeg4"},
    "h264_in.avi": {},
    "no_b_frames.avi": {"codec": "mpeg4", "b_frames": 0},
    "open_group_hevc.mp4": {"codec": "libx265", "options": QUIET_X265},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "hidden_references.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "no_duration.webm": {"codec": "libvpx", "container_options": {"live": "1"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "8", "crf": "10"}},
    "raw_stream.h264": {"format": "h264"},
    "windows.wmv": {"codec": "wmv2", "b_frames": 0},
    "flash.flv": {"codec": "flv", "b_frames": 0},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "variable_rate.mp4": {"times": [i * i for i in range(60)]},
    "with_sound.mp4": {"audio": True},
    "one_group.mp4": {"gop": 250},
    "one_frame.mp4": {"num_frames": 1},
    "three_frames.mp4": {"num_frames": 3},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("count", [5, 12, 1000])
def test_frames_are_those_of_sequential_decoding(tmp_path, name, count):
    path = write_video(tmp_path / name, **KINDS[name])
    shown = numbers(path)
    assert shown == list(range(KINDS[name].get("num_frames", 60)))
    decoded = decode(path, count=count)
    assert [number_in(pixels) for pixels in decoded.pixels] == [
        shown[i] for i in uniform(len(shown), 0, count)
    ]
    assert (decoded.status, decoded.error) == ("ok", None)
    assert decoded.times == sorted(set(decoded.times))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_is_given_by_name(tmp_path, sampler):
    path = write_video(tmp_path / "a.mp4", num_frames=110)
    decoded = decode(path, count=4, sampler=sampler)
    ordinals = SAMPLERS[sampler](110, 25, 4)
    assert [number_in(pixels) for pixels in decoded.pixels] == ordinals
    assert decoded.times == pytest.approx([ordinal / 25 for ordinal in ordinals])


def test_pixels_are_those_of_full_decoding_to_the_last_bit(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=90, gop=30, b_frames=3, width=128, height=128)
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    decoded = decode(path, count=7, size=128)
    assert np.array_equal(decoded.pixels, np.stack([every[i] for i in uniform(90, 25, 7)]))


def test_what_is_known_of_a_video_is_told(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=50, rate=20, width=176, height=144)
    decoded = decode(path, count=3, size=32)
    assert (decoded.width, decoded.height, decoded.codec) == (176, 144, "h264")
    assert (decoded.fps, decoded.duration) == (20, pytest.approx(2.5))
    assert decoded.pixels.shape == (3, 32, 32, 3)
    assert decoded.pixels.dtype == np.uint8


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_video_stands_upright(tmp_path, degrees):
    stored = write_video(tmp_path / "stored.mp4", width=128, height=128, num_frames=8)
    turned = write_video(tmp_path / "turned.mp4", width=128, height=128, num_frames=8, rotation=degrees)
    straight, upright = (decode(path, count=8, size=128).pixels for path in (stored, turned))
    assert np.array_equal(upright, np.rot90(straight, degrees // 90, axes=(1, 2)))


IDENTITY = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)  # of a track in MP4


@pytest.mark.parametrize(("diagonal", "axis"), [((-0x10000, 0x10000), 2), ((0x10000, -0x10000), 1)])
def test_a_mirrored_video_is_mirrored_back(tmp_path, diagonal, axis):
    stored = write_video(tmp_path / "stored.mp4", width=128, height=128, num_frames=4)
    content = bytearray(stored.read_bytes())
    matrix = struct.pack(">9i", diagonal[0], 0, 0, 0, diagonal[1], 0, 0, 0, 0x40000000)
    place = content.rindex(struct.pack(">9i", *IDENTITY))
    content[place : place + 36] = matrix
    (tmp_path / "mirrored.mp4").write_bytes(content)
    straight = decode(stored, count=4, size=128).pixels
    mirrored = decode(tmp_path / "mirrored.mp4", count=4, size=128).pixels
    assert np.array_equal(mirrored, np.flip(straight, axis=axis))


def test_frames_that_an_edit_list_cuts_are_not_counted(tmp_path):
    path = tmp_path / "edited.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        pictures = [av.VideoFrame.from_ndarray(picture(i), format="rgb24") for i in range(60)]
        packets = [packet for frame in [*pictures, None] for packet in stream.encode(frame)]
        for packet in packets:
            packet.pts -= 15
            packet.dts -= 15
            container.mux(packet)
        assert len(packets) == 60
    assert numbers(path) == list(range(15, 60))
    assert [number_in(pixels) for pixels in decode(path, count=99).pixels] == list(range(15, 60))


@pytest.mark.parametrize("name", ["b_frames.mp4", "decoding_times.avi", "raw_stream.h264"])
def test_a_moment_gives_frames_between_its_start_and_end(tmp_path, name):
    path = write_video(tmp_path / name, **KINDS[name])
    decoded = decode(path, count=100, start=0.4, end=1.2)
    assert [number_in(pixels) for pixels in decoded.pixels] == list(range(10, 30))
    assert decoded.times == pytest.approx([i / 25 for i in range(10, 30)])
    assert decoded.duration == pytest.approx(2.4), "of the whole video"


WINDOWS = [(None, None), (0.0, 0.8), (0.4, 1.2), (0.4, 1.2), (2.0, None), (1.51, 1.52), (0.0, 10**400)]


@pytest.mark.parametrize("name", KINDS)
def test_many_moments_in_one_pass_are_those_decoded_one_by_one(tmp_path, name):
    path = write_video(tmp_path / name, **KINDS[name])
    duration = decode(path, count=1).duration
    windows = [(start, end) for start, end in WINDOWS if (start or 0) < duration]
    together = decode_moments(path, windows, count=4)
    for (start, end), moment in zip(windows, together, strict=True):
        alone = decode(path, count=4, start=start, end=end)
        assert np.array_equal(moment.pixels, alone.pixels)
        assert (moment.times, moment.status, moment.duration) == (alone.times, "ok", alone.duration)


def test_moments_that_overlap_decode_and_hold_a_frame_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", num_frames=100)
    added = []
    add = Preprocessor.add

    def counted_add(self, key, frame):
        added.append(key)
        add(self, key, frame)

    monkeypatch.setattr(Preprocessor, "add", counted_add)
    windows = [(start / 10, start / 10 + 2) for start in range(20)]
    moments = decode_moments(path, windows, count=8)
    frames = {time for moment in moments for time in moment.times}
    assert len(added) == len(set(added)) == len(frames)
    pictures = {id(square) for moment in moments for square in moment.squares[224]}
    assert len(pictures) == len(frames)


def test_several_sizes_cost_one_decoding(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    decoded = decode(path, count=5, size=[64, 96])
    assert np.array_equal(decoded.pixels, decode(path, count=5, size=64).pixels)
    assert np.array_equal(decoded.pixels_of(96), decode(path, count=5, size=96).pixels)


def test_a_model_may_squash_its_pictures(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=3)
    squashed = decode(path, count=1, size=96, resize="squash", interpolation="bilinear").pixels[0]
    with av.open(str(path)) as container:
        stored = list(container.decode(video=0))[1].to_ndarray(format="rgb24")
    expected = np.asarray(Image.fromarray(stored).resize((96, 96), Image.Resampling.BILINEAR))
    assert np.abs(squashed.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [(50.0, 60.0, "starts at 50 s, but the video ends at 2.40 s"), (2.0, 1.0, "ends at 1 s, before")],
)
def test_a_moment_outside_its_video_is_refused(tmp_path, start, end, reason):
    with pytest.raises(VideoError, match=reason):
        decode(write_video(tmp_path / "a.mp4"), count=4, start=start, end=end)


def test_a_stream_too_long_to_hold_is_read_twice_and_gives_the_same(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", num_frames=100)
    held = decode(path, count=9)
    monkeypatch.setattr(source_module, "HELD_BYTES", 1000)
    reread = decode(path, count=9)
    assert np.array_equal(held.pixels, reread.pixels)
    assert reread.status == "ok", "every run of packets was decoded, with nothing lost between them"
    with path.open("rb") as file:
        assert np.array_equal(held.pixels, decode(file, count=9).pixels), "and from an open file"


def test_a_capture_that_begins_between_key_pictures_starts_at_the_first_whole_picture(tmp_path):
    whole = write_video(tmp_path / "whole.ts", num_frames=100)
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole.read_bytes()[188 * 40 :])
    assert 0 < len(numbers(cut)) < 90
    assert [number_in(pixels) for pixels in decode(cut, count=200).pixels] == numbers(cut)


def test_a_picture_size_that_changes_in_mid_stream_is_followed(tmp_path):
    small = write_video(tmp_path / "small.ts", num_frames=20)
    large = write_video(tmp_path / "large.h264", num_frames=20, width=240, height=144, format="h264")
    joined = tmp_path / "joined.h264"
    first = write_video(tmp_path / "small.h264", num_frames=20, format="h264")
    joined.write_bytes(first.read_bytes() + large.read_bytes())
    assert [number_in(pixels) for pixels in decode(joined, count=99).pixels] == [*range(20), *range(20)]
    assert len(decode(small, count=99).pixels) == 20


def test_a_video_over_its_time_limit_ends_with_the_limit_in_its_reason(tmp_path):
    with pytest.raises(VideoError, match="longer than the limit of 1e-06 s"):
        decode(write_video(tmp_path / "a.mp4"), count=4, time_limit=1e-6)


def test_a_colon_in_a_file_name_is_no_protocol(tmp_path, monkeypatch):
    write_video(tmp_path / "http:clip.mp4", num_frames=5)
    monkeypatch.chdir(tmp_path)
    assert len(decode("http:clip.mp4", count=9).pixels) == 5


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 160, 96, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture(3), format="rgb24")
        for packet in [*cover.encode(frame), *cover.encode(None)]:
            container.mux(packet)
        write_silence(container, sound, 2)
    with pytest.raises(VideoError, match="no video stream, only a cover picture, audio"):
        decode(path, count=4)
