"""The order of MPEG-4 pictures in AVI: against times where those are known, and in real files."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
from support.video import number_in, write_video

from vopcore.video import decode
from vopcore.video.reorder import VOP_START, PictureTypes

decoding = sys.modules["vopcore.video.decode"]


def packets_of(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("b_frames", [0, 1, 2, 4])
def test_types_give_the_order_that_times_give_in_mp4(tmp_path, b_frames):
    packets = packets_of(write_video(tmp_path / "a.mp4", codec="mpeg4", b_frames=b_frames))
    types = PictureTypes()
    for packet in packets:
        types.add(bytes(packet))
    by_time = np.argsort(np.argsort([packet.pts for packet in packets]))
    assert types.ranks().tolist() == by_time.tolist()


@pytest.mark.parametrize(
    "data", [b"", b"\x00\x00\x01\xb0", VOP_START + b"\x00" + VOP_START + b"\x00" + VOP_START + b"\x00"]
)
def test_packets_of_unknown_pictures_have_no_order(data):
    types = PictureTypes()
    types.add(VOP_START + b"\x00")
    types.add(data)
    assert types.ranks() is None


def placeholder(number: int) -> bytes:
    """A picture that is not coded: type P, no whole second, a marker, 5 bits of time, a marker, 0."""
    bits = "01" + "0" + "1" + format(number % 25, "05b") + "1" + "0" + "0"
    bits += "1" * (-len(bits) % 8)
    return VOP_START + int(bits, 2).to_bytes(len(bits) // 8, "big")


def write_packed(path: Path, source: Path) -> Path:
    """The pictures of an AVI with single B pictures as DivX packs them: each with the one before it."""
    packets = [bytes(packet) for packet in packets_of(source)]
    types = [packet[packet.index(VOP_START) + 4] >> 6 for packet in packets]

    # What tells the decoder that pictures are packed stands before the first of them.
    first_vop = packets[0].index(VOP_START)
    mark = b"\x00\x00\x01\xb2DivX503b1393p\x00"
    packets[0] = packets[0][:first_vop] + mark + packets[0][first_vop:]

    packed = []
    for data, kind in zip(packets, types, strict=True):
        if kind == 2:
            packed[-1] += data
            packed.append(placeholder(len(packed)))
        else:
            packed.append(data)

    with av.open(str(source)) as template, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(template.streams.video[0])
        for number, data in enumerate(packed):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base = template.streams.video[0].time_base
            packet.is_keyframe = types[number] == 0
            packet.stream = stream
            container.mux(packet)
    return path


@pytest.mark.parametrize("packs", [False, True])
def test_an_avi_with_b_pictures_is_planned_and_gives_the_frames_meant(tmp_path, monkeypatch, packs):
    def refuse(self):
        raise AssertionError("everything was decoded")

    monkeypatch.setattr(decoding.Reader, "counted", refuse)
    path = write_video(tmp_path / "a.avi", codec="mpeg4", b_frames=1, num_frames=40)
    if packs:
        path = write_packed(tmp_path / "packed.avi", path)
    decoded = decode(path, count=1000)
    assert [number_in(pixels) for pixels in decoded.pixels] == list(range(40))
    assert decoded.times == pytest.approx([number / 25 for number in range(40)])
    assert [number_in(pixels) for pixels in decode(path, count=4).pixels] == [4, 14, 24, 34]
