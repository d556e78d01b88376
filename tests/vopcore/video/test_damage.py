"""Files that are not what they say: each gives the frames that can be had, or its reason; never a crash
or a hang.
"""

import os
import random
import re
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support.video import number_in, numbers, picture, write_silence, write_video

from vopcore.video import VideoError, decode, decode_moments, probe
from vopcore.video.damage import Damage

NOT_VIDEOS = {
    "empty.mp4": (b"", "not a readable video file"),
    "page.mp4": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20, "not a readable video file"),
    "noise.mp4": (random.Random(0).randbytes(5000), "not a readable video file"),
    "playlist.mp4": (b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n", "not a readable"),
}


@pytest.mark.parametrize("name", NOT_VIDEOS)
def test_a_file_that_is_no_video_has_its_reason(tmp_path, name):
    content, why = NOT_VIDEOS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=why) as caught:
        decode(tmp_path / name, count=4)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_has_its_reason(tmp_path):
    with pytest.raises(VideoError, match="No such file"):
        decode(tmp_path / "gone.mp4", count=4)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        write_silence(container, container.add_stream("aac", rate=16000, layout="mono"), 2)
    with pytest.raises(VideoError, match="no video stream, only audio"):
        decode(tmp_path / "sound.mp4", count=4)


def widen_key_picture(content: bytearray, which: int) -> None:
    """Makes a VP8 key picture say that it has 16383 x 8191 pixels."""
    start_code = b"\x9d\x01\x2a"
    place = -1
    for _ in range(which + 1):
        place = content.index(start_code, place + 1)
    content[place + 3 : place + 7] = (16383).to_bytes(2, "little") + (8191).to_bytes(2, "little")


def test_a_header_of_134_million_pixels_is_refused_before_anything_is_decoded(tmp_path):
    path = write_video(tmp_path / "bomb.webm", num_frames=3, width=320, height=256, codec="libvpx")
    content = bytearray(path.read_bytes())
    for element, old, new in ((b"\xb0\x82", 320, 16383), (b"\xba\x82", 256, 8191)):  # PixelWidth, PixelHeight
        place = content.index(element + old.to_bytes(2, "big"))
        content[place + 2 : place + 4] = new.to_bytes(2, "big")
    widen_key_picture(content, 0)
    path.write_bytes(content)
    with pytest.raises(VideoError, match="16383 x 8191 pixels are more than the limit of 35,651,584"):
        decode(path, count=3)


def test_a_picture_that_grows_too_large_in_mid_stream_is_refused_by_the_decoder(tmp_path):
    content = bytearray(write_video(tmp_path / "a.webm", num_frames=24, codec="libvpx", gop=8).read_bytes())
    widen_key_picture(content, 1)
    (tmp_path / "grows.webm").write_bytes(content)
    decoded = decode(tmp_path / "grows.webm", count=24)
    assert decoded.status == "damaged"
    assert "packet cannot be decoded" in decoded.error


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("a.mp4", {"container_options": {"movflags": "faststart"}}, r"pictures end at \d.\d s of 8.0 s"),
        ("a.mkv", {}, r"pictures end at \d.\d s of 8.0 s"),
        ("a.avi", {"codec": "mpeg4"}, "cut short"),
        ("a.flv", {"codec": "flv", "b_frames": 0}, "cut short"),
        ("a.webm", {"codec": "libvpx"}, r"pictures end at \d.\d s of 8.0 s"),
    ],
)
def test_a_file_cut_at_60_percent_gives_its_first_part_and_is_marked(tmp_path, name, more, said):
    content = write_video(tmp_path / name, num_frames=200, **more).read_bytes()
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(content[: int(len(content) * 0.6)])
    decoded = decode(cut, count=10)
    assert decoded.status == "damaged"
    assert len(decoded.pixels) == 10
    shown = [number_in(pixels) for pixels in decoded.pixels]
    assert set(shown) <= set(numbers(cut))
    assert shown == sorted(shown)
    assert re.search(said, decoded.error)


def test_without_its_index_at_the_end_an_mp4_cut_short_is_no_video(tmp_path):
    content = write_video(tmp_path / "a.mp4", num_frames=200).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * 0.6)])
    with pytest.raises(VideoError, match="not a readable video file"):
        decode(tmp_path / "cut.mp4", count=4)


def test_a_picture_that_is_lost_is_replaced_by_its_neighbour(tmp_path):
    groups_of_6 = "keyint=6:min-keyint=6:scenecut=0"
    path = write_video(tmp_path / "a.mkv", b_frames=0, options={"x264-params": groups_of_6})
    with av.open(str(path)) as container:
        packets = [(packet.pts, bytes(packet)) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for _, data in packets[30:36]:  # a whole group: its pictures' data become zeros
        place = content.index(data)
        content[place : place + len(data)] = bytes(len(data))
    (tmp_path / "holed.mkv").write_bytes(content)
    decoded = decode(tmp_path / "holed.mkv", count=60)
    assert decoded.status == "damaged"
    assert "packet cannot be decoded" in decoded.error
    shown = [number_in(pixels) for pixels in decoded.pixels]
    assert shown[:30] == list(range(30))
    assert shown[36:] == list(range(36, 60))
    assert set(shown[30:36]) == {29, 36}


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def test_a_broken_reference_that_nobody_keeps_makes_the_frames_after_it_damaged(tmp_path):
    path = write_video(tmp_path / "a.mkv", num_frames=100, gop=50, b_frames=0, codec="mpeg4")
    packets = packets_of(path)
    content = bytearray(path.read_bytes())
    place = content.index(packets[53]) + len(packets[53]) // 2
    content[place : place + 40] = b"\xff" * 40
    (tmp_path / "flipped.mkv").write_bytes(content)

    decoded = decode(tmp_path / "flipped.mkv", count=10)
    assert decoded.status == "damaged"
    # Uniform over 100: frames 4, 14, ... 94; those from 54 to 94 come after the broken picture 53.
    assert "1 picture is broken, which may have reached 5 of 10 frames" in decoded.error

    before, after = decode_moments(tmp_path / "flipped.mkv", [(0.0, 2.0), (2.0, 4.0)], count=5)
    assert (before.status, before.error) == ("ok", None)
    assert after.status == "damaged"
    assert "may have reached 5 of 5 frames" in after.error


def test_equal_complaints_of_two_videos_are_noted_for_both(tmp_path):
    path = write_video(tmp_path / "a.mkv", num_frames=30, b_frames=0, codec="mpeg4")
    packets = packets_of(path)
    content = bytearray(path.read_bytes())
    place = content.index(packets[3]) + len(packets[3]) // 2
    content[place : place + 40] = b"\xff" * 40
    (tmp_path / "flipped.mkv").write_bytes(content)
    first = decode(tmp_path / "flipped.mkv", count=30)
    second = decode(tmp_path / "flipped.mkv", count=30)
    assert first.status == "damaged"
    assert second.error == first.error


def test_reasons_are_bounded_however_many_there_are():
    damage = Damage()
    for position in range(10_000):
        damage.add(position, f"error of kind {chr(65 + position % 26)}{chr(65 + position // 26 % 26)}")
    summary = damage.summary([(0, 4_999), (20_000, 30_000)], whole_file=False)
    assert summary.startswith("5000 pictures are broken, which may have reached 1 of 2 frames: ")
    assert len(summary) < 200


OPENING_OTHERS = {
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{folder}/bait.ts\n#EXT-X-ENDLIST\n",
    "hls_uri.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{folder}/bait.ts\n#EXT-X-ENDLIST\n",
    "live.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nbait.ts\n",
    "list.mp4": "ffconcat version 1.0\nfile bait.ts\n",
    "text.ans": "\x1b[31mnot a video\x1b[0m\n",
}


@pytest.mark.parametrize("name", OPENING_OTHERS)
def test_a_file_that_names_others_is_no_video(tmp_path, name):
    write_video(tmp_path / "bait.ts")
    text = OPENING_OTHERS[name].format(folder=tmp_path)
    (tmp_path / name).write_text(text * (50 if name.endswith("ans") else 1))
    with pytest.raises(VideoError, match="not a readable video file"):
        decode(tmp_path / name, count=4)


def test_a_pattern_of_pictures_is_no_video(tmp_path):
    for number in range(3):
        Image.fromarray(picture(number)).save(tmp_path / f"img{number:03d}.jpg")
    for name in ("img%03d.jpg", "img000.jpg"):
        with pytest.raises(VideoError, match="not a readable video file"):
            decode(tmp_path / name, count=4)


def test_only_ordinary_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    (tmp_path / "folder.mp4").mkdir()
    for name, kind in (("pipe", "a named pipe"), ("device", "a device"), ("folder", "a folder")):
        for opens in (partial(decode, count=4), probe):
            with pytest.raises(VideoError, match=f"not a video file but {kind}") as caught:
                opens(tmp_path / f"{name}.mp4")
            assert str(tmp_path) not in str(caught.value)


def test_the_error_knows_its_file(tmp_path):
    with pytest.raises(VideoError) as caught:
        decode(tmp_path / "gone.mp4", count=4)
    assert caught.value.file == str(tmp_path / "gone.mp4")


def test_sound_that_the_header_does_not_announce_costs_no_picture(tmp_path):
    path = write_video(tmp_path / "a.flv", num_frames=40, codec="flv", b_frames=0, audio=True)
    content = bytearray(path.read_bytes())
    assert content[4] == 5, "the header announces sound and pictures"
    content[4] = 1
    late = tmp_path / "late.flv"
    late.write_bytes(content)
    decoded = decode(late, count=40)
    assert [number_in(pixels) for pixels in decoded.pixels] == list(range(40))


def test_a_length_in_odd_digits_is_no_length(tmp_path):
    path = write_video(tmp_path / "a.mkv")
    content = path.read_bytes()
    written = b"00:00:02.400000000"
    assert written in content
    odd = "00:00:0²".encode().ljust(len(written), b"0")
    (tmp_path / "odd.mkv").write_bytes(content.replace(written, odd))
    assert decode(tmp_path / "odd.mkv", count=4).status == "ok"


def test_a_slideshow_ends_with_its_last_slide(tmp_path):
    path = write_video(tmp_path / "slides.mp4", num_frames=2, rate=Fraction(1, 10), b_frames=0)
    decoded = decode(path, count=2)
    assert (decoded.status, decoded.error) == ("ok", None)
    assert decoded.duration == pytest.approx(20)
    assert decode(path, count=1, start=19.0).times == [10.0]


@pytest.mark.parametrize(("width", "height"), [(16, 2048), (2048, 16)])
def test_strips_are_refused_by_their_shape(tmp_path, width, height):
    path = write_strip(tmp_path / "strip.mkv", width, height)
    with pytest.raises(VideoError, match=f"{width} x {height} pixels are longer than 32 times"):
        decode(path, count=4)


def write_strip(path: Path, width: int, height: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sound")
    tiny = {"num_frames": 24, "width": 64, "height": 48, "gop": 8}
    kinds = {
        "a.mp4": {},
        "a.mkv": {},
        "a.ts": {},
        "a.h264": {"format": "h264"},
        "a.avi": {"codec": "mpeg4"},
        "a.mpg": {"codec": "mpeg2video"},
        "a.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
        "b.webm": {"codec": "libvpx"},
        "b.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
        "a.flv": {"codec": "flv", "b_frames": 0},
        "a.wmv": {"codec": "wmv2", "b_frames": 0},
    }
    return [write_video(folder / name, **tiny, **kind) for name, kind in kinds.items()]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them flipped, dropped, put in or zeroed."""
    bytes_ = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 10, 50])):
        place, length = rng.randrange(len(bytes_)), rng.randrange(1, 30)
        match rng.choice(["flip", "flip", "flip", "drop", "insert", "zero"]):
            case "flip":
                bytes_[place] ^= 1 << rng.randrange(8)
            case "drop":
                del bytes_[place : place + length]
            case "insert":
                bytes_[place:place] = rng.randbytes(length)
            case "zero":
                bytes_[place : place + length] = bytes(length)
    return bytes(bytes_)


@pytest.mark.parametrize("seed", range(5))
def test_100_mutated_files_give_all_frames_or_say_what_is_wrong(tmp_path, sound_files, seed):
    rng = random.Random(seed)
    endings, reasons = [], []
    for attempt in range(100):
        original = sound_files[attempt % len(sound_files)]
        path = tmp_path / f"{attempt}_{original.name}"
        path.write_bytes(mutated(original.read_bytes(), rng))
        try:
            decoded = decode(path, count=1000, size=32, time_limit=10)
        except VideoError as error:
            reasons.append(str(error))
            endings.append("failed")
            continue
        assert len(decoded.pixels) == len(decoded.times) > 0
        endings.append(decoded.status)
        if decoded.status == "ok":
            assert len(decoded.pixels) == len(numbers(path)), path
    assert not [reason for reason in reasons if "longer than the limit" in reason]
    assert set(endings) == {"ok", "damaged", "failed"}
