"""Files that are not what they say: each gives the frames that can be had, or its reason; never a crash
or a hang.
"""

import random
import re
from pathlib import Path

import av
import pytest
from support.video import number_in, numbers, write_silence, write_video

from vopcore.video import VideoError, decode

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
