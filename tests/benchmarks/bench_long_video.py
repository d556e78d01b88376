"""Memory that one long video takes: python tests/benchmarks/bench_long_video.py FOLDER [hours]

Prints what decoding 64 frames adds to the process's peak memory, for one minute of 640x360 and for
`hours` (default 2) of it.
"""

import subprocess
import sys
import time
from pathlib import Path

import av
from scenes import write_scene

DECODE = """
import resource, sys, torch
from vopcore.video import decode
torch.set_num_threads(1)
decode(sys.argv[1], count=64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(sys.argv[2], count=64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def repeated(minute: Path, path: Path, times: int) -> Path:
    """The same packets again and again, with times that go on."""
    if path.exists():
        return path
    with av.open(str(minute)) as source, av.open(str(path), "w") as target:
        template = source.streams.video[0]
        packets = [packet for packet in source.demux(template) if packet.size]
        length = sum(packet.duration for packet in packets)
        stream = target.add_stream_from_template(template)
        began = [(packet.pts, packet.dts) for packet in packets]
        for shift in range(0, times * length, length):
            for packet, (pts, dts) in zip(packets, began, strict=True):
                packet.stream, packet.time_base = stream, template.time_base
                packet.pts, packet.dts = pts + shift, dts + shift
                target.mux(packet)
    return path


def main(folder: Path, hours: float) -> None:
    tiny = write_scene(folder / "tiny.mp4", 4, 160, 120)
    minute = write_scene(folder / "minute.mp4", 60, 640, 360, gop=50)
    for path in (minute, repeated(minute, folder / f"{hours:g}_hours.mp4", int(hours * 60))):
        began = time.monotonic()
        command = [sys.executable, "-c", DECODE, str(tiny), str(path)]
        added = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        took = time.monotonic() - began
        print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB file, {added:.0f} MB of memory, {took:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 2)
