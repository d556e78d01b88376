"""Files made to do harm, given to the decoder: python tests/benchmarks/stress_videos.py FOLDER [files] [seed]

First mutated videos: every codec in every container that takes it, with bytes flipped, dropped, put in and
zeroed. Each is decoded whole, and again at 12 frames, in a process of its own; ffmpeg, which must be
installed, judges the same file: what it calls an error may not be "ok". Then playlists, scripts, pipes and
links, under strace, which counts what else was opened. Prints the tables of RESULTS.md and, below them, every
file that missed a goal.
"""

import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.video import picture

from vopcore.video import VideoError, decode

CODECS = {
    "h264": ("libx264", {}),
    "hevc": ("libx265", {"x265-params": "log-level=none"}),
    "mpeg4": ("mpeg4", {}),
    "mpeg2": ("mpeg2video", {}),
    "vp8": ("libvpx", {"deadline": "realtime"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"preset": "10"}),
    "flv1": ("flv", {}),
    "wmv2": ("wmv2", {}),
    "mjpeg": ("mjpeg", {}),
    "gif": ("gif", {}),
    "ffv1": ("ffv1", {}),
}
WITHOUT_B_FRAMES = {"flv1", "wmv2", "mjpeg", "gif", "ffv1"}
PIXEL_FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8"}
CONTAINERS = ["mp4", "mkv", "avi", "ts", "flv", "wmv", "mpg", "gif"]

STATUSES = ["ok", "damaged", "failed"]
NUM_FRAMES = 24
TIME_LIMIT = 10.0  # seconds
MEMORY_GOAL = 300 * 2**20  # bytes


def main(folder: Path, num_files: int, seed: int) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    originals = write_originals(folder / "originals")
    kinds = sorted({path.stem for path in originals})
    print(f"{len(originals)} videos of {len(kinds)} codecs in {len(CONTAINERS)} containers, seed {seed}")

    results = []
    rng = random.Random(seed)
    for number in range(num_files):
        original = originals[number % len(originals)]
        path = folder / "mutated" / f"{number:04d}_{original.name}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutated(original.read_bytes(), rng))
        results.append(measure(path))
    print_mutated(results)

    tricks = write_tricks(folder / "tricks", originals)
    print_tricks(traced(tricks, folder / "strace.log"))


def write_originals(folder: Path) -> list[Path]:
    """One small video of each codec in each container that takes it."""
    folder.mkdir(exist_ok=True)
    paths = []
    for container in CONTAINERS:
        for codec in CODECS:
            path = folder / f"{codec}.{container}"
            try:
                if not path.exists():
                    write_original(path, codec)
            except (av.FFmpegError, ValueError):
                path.unlink(missing_ok=True)
                continue
            # Some muxers write what no demuxer reads.
            if is_whole(path):
                paths.append(path)
    return paths


def write_original(path: Path, codec: str) -> None:
    encoder, options = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height = 128, 96
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        stream.codec_context.gop_size = 8
        stream.codec_context.max_b_frames = 0 if codec in WITHOUT_B_FRAMES else 2
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(number, 128, 96), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def is_whole(path: Path) -> bool:
    """Whether ffmpeg reads all frames without complaint, and so do we."""
    judgement = judged(path)
    if judgement["errors"] or judgement["frames"] < NUM_FRAMES - 1:
        return False
    ours = decode(path, count=1000, size=32)
    if ours.status != "ok":
        print(f"a whole file is not ok: {path.name}: {ours.error}")
    return True


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them flipped, dropped, put in, zeroed, or the end cut off."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 10, 50])):
        place = rng.randrange(len(changed))
        length = rng.randrange(1, 30)
        match rng.choice(["flip"] * 5 + ["drop", "insert", "zero", "cut"]):
            case "flip":
                changed[place] ^= 1 << rng.randrange(8)
            case "drop":
                del changed[place : place + length]
            case "insert":
                changed[place:place] = rng.randbytes(length)
            case "zero":
                changed[place : place + length] = bytes(length)
            case "cut" if place > len(changed) // 2:
                del changed[place:]
    return bytes(changed)


def measure(path: Path) -> dict:
    """How our decoder ends on a file, whole and at 12 frames, beside ffmpeg's judgement."""
    result = {"file": path.name, "judge": judged(path)}
    for name, count in (("whole", 1000), ("sampled", 12)):
        result[name] = in_child(lambda count=count: ending(path, count))
    return result


def ending(path: Path, count: int) -> dict:
    """The status of one decoding, how many frames it gave and what it said."""
    try:
        decoded = decode(path, count=count, size=32, time_limit=TIME_LIMIT)
    except VideoError as error:
        return {"status": "failed", "frames": 0, "error": str(error)}
    return {"status": decoded.status, "frames": len(decoded.times), "error": decoded.error}


def in_child(work: Callable[[], dict]) -> dict:
    """What `work` returns, in a forked process, with its seconds and the memory that it took; a process
    that dies or does not end is a status too.
    """
    readable, writable = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(readable)
        before = peak_memory()
        result = work()
        result["memory"] = peak_memory() - before
        os.write(writable, json.dumps(result).encode())
        os._exit(0)

    os.close(writable)
    ready, _, _ = select.select([readable], [], [], 2 * TIME_LIMIT)
    if not ready:
        os.kill(child, signal.SIGKILL)
    answer = os.read(readable, 2**16) if ready else b""
    os.close(readable)
    os.waitpid(child, 0)

    result = json.loads(answer) if answer else {"status": "crash" if ready else "hang", "memory": 0}
    result["seconds"] = time.monotonic() - started
    return result


def peak_memory() -> int:
    """Bytes; of this process since it was forked."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def judged(path: Path) -> dict:
    """What ffmpeg itself says of a file: its errors, and how many pictures it gives."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-threads", "1", "-i", str(path)]
    command += ["-map", "0:V:0", "-fps_mode", "passthrough", "-f", "framecrc", "-"]
    run = subprocess.run(command, capture_output=True, timeout=120)
    lines = run.stdout.splitlines()
    errors = run.stderr.decode(errors="replace").splitlines()
    # The muxer's complaints are about what we ask it to write, not about the file.
    errors = [line for line in errors if "framecrc" not in line and "pplication provided" not in line]
    return {"errors": errors[:5], "frames": sum(not line.startswith(b"#") for line in lines)}


def print_mutated(results: list[dict]) -> None:
    endings = [result[way] for result in results for way in ("whole", "sampled")]
    decoded_whole = [result for result in results if result["whole"]["status"] == "ok"]
    silent = [result for result in decoded_whole if result["judge"]["errors"]]
    miscounted = [
        result for result in decoded_whole if result["whole"]["frames"] != result["judge"]["frames"]
    ]
    strict = [
        result for result in results if result["whole"]["status"] != "ok" and not result["judge"]["errors"]
    ]
    rows = {
        "files": len(results),
        "ok / damaged / failed": " / ".join(str(num_whole(results, status)) for status in STATUSES),
        "crashes": sum(ending["status"] == "crash" for ending in endings),
        "hangs, or over 1.5 x the time limit": sum(is_late(ending) for ending in endings),
        "most memory of one, MB": round(max(ending["memory"] for ending in endings) / 2**20),
        "ok, and ffmpeg complains": len(silent),
        "ok, and ffmpeg gives another number of pictures": len(miscounted),
        "not ok, and ffmpeg says nothing": len(strict),
    }
    print("| mutated videos | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for name, files in (("silent", silent), ("another number", miscounted), ("strict", strict)):
        print(f"\n{name}: {Counter(file['file'].split('_')[1] for file in files)}")
        for file in files:
            whole = file["whole"]
            print(f"  {file['file']}: {whole['frames']} frames, {whole.get('error')}; {file['judge']}")
    for result in results:
        print_excess(result)


def num_whole(results: list[dict], status: str) -> int:
    return sum(result["whole"]["status"] == status for result in results)


def is_late(ending: dict) -> bool:
    return ending["status"] == "hang" or ending["seconds"] > 1.5 * TIME_LIMIT


def print_excess(result: dict) -> None:
    """The decodings of one file that took too much memory or did not end."""
    for way in ("whole", "sampled"):
        if result[way]["memory"] > MEMORY_GOAL or result[way]["status"] in ("crash", "hang"):
            print(f"  {result['file']} {way}: {result[way]}")


def write_tricks(folder: Path, originals: list[Path]) -> list[Path]:
    """Files that would make a careless reader open others: `bait.mp4` beside them, pictures, the network."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(next(path for path in originals if path.name == "h264.mp4"), folder / "bait.mp4")
    shutil.copy(next(path for path in originals if path.name == "h264.ts"), folder / "bait.ts")
    for number in range(5):
        write_picture(folder / f"img{number:03d}.png", number)

    targets = ["bait.ts", "./bait.ts", "../tricks/bait.ts", f"{folder}/bait.ts", f"file://{folder}/bait.ts"]
    targets += [
        f"file:{folder}/bait.ts",
        "http://127.0.0.1:9/a.ts",
        "tcp://127.0.0.1:9",
        "concat:bait.ts|bait.ts",
    ]
    playlists = {
        "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
        "live": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n",
        "concat": "ffconcat version 1.0\nfile {}\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na={}\n",
        "dash": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
            "</Representation></AdaptationSet></Period></MPD>"
        ),
    }
    paths = []
    for kind, text in playlists.items():
        for number, target in enumerate(targets):
            for ending in ("mp4", {"hls": "m3u8", "live": "m3u8", "dash": "mpd"}.get(kind, kind)):
                path = folder / f"{kind}{number}.{ending}"
                path.write_text(text.format(target))
                paths.append(path)

    (folder / "ansi.ans").write_text("\x1b[31mnot a video\x1b[0m\n" * 200)
    (folder / "text.mp4").write_text("Lorem ipsum dolor sit amet. " * 200)
    (folder / "script.avs").write_text('DirectShowSource("bait.mp4")\n')
    (folder / "script.vpy").write_text("import os\nopen('bait.mp4')\n")
    (folder / "link_to_device.mp4").symlink_to("/dev/zero")
    (folder / "link_to_nothing.mp4").symlink_to(folder / "gone.mp4")
    (folder / "a_folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    names = ["ansi.ans", "text.mp4", "script.avs", "script.vpy", "link_to_device.mp4", "link_to_nothing.mp4"]
    names += ["a_folder.mp4", "pipe.mp4", "img%03d.png", "img000.png"]
    return paths + [folder / name for name in names]


def write_picture(path: Path, number: int) -> None:
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(picture(number))).save(path)


def traced(paths: list[Path], log: Path) -> list[dict]:
    """Each file decoded in one process under strace: its ending, and what was opened or connected to
    beside it.
    """
    script = (
        "import sys, json, os\n"
        "from vopcore.video import VideoError, decode\n"
        "for path in sys.argv[1:]:\n"
        "    os.access('/begin' + path, os.R_OK)\n"
        "    try:\n"
        "        status = decode(path, count=4, size=32, time_limit=5).status\n"
        "    except VideoError as error:\n"
        "        status = str(error)\n"
        "    os.access('/end' + path, os.R_OK)\n"
        "    print(json.dumps([path, status]), flush=True)\n"
    )
    command = ["strace", "-f", "-s", "4096", "-e", "trace=open,openat,connect,access,faccessat,faccessat2"]
    command += ["-o", str(log), sys.executable, "-c", script, *map(str, paths)]
    run = subprocess.run(command, capture_output=True, timeout=600, text=True)
    statuses = dict(json.loads(line) for line in run.stdout.splitlines())

    opened = {str(path): [] for path in paths}
    current = None
    for line in log.read_text(errors="replace").splitlines():
        if begin := re.search(r'access.*"/begin([^"]+)"', line):
            current = begin.group(1)
        elif re.search(r'access.*"/end', line):
            current = None
        elif current and ("connect(" in line or "open" in line) and f'"{current}"' not in line:
            opened[current].append(line)
    return [
        {"file": Path(path).name, "status": statuses.get(path, "hang or crash"), "opened": lines}
        for path, lines in opened.items()
    ]


def print_tricks(results: list[dict]) -> None:
    connections = sum("connect(" in line for result in results for line in result["opened"])
    others = sum(len(result["opened"]) for result in results) - connections
    shown = [result for result in results if result["status"] in ("ok", "damaged")]
    rows = {
        "files": len(results),
        "files opened beside the one named": others,
        "connections": connections,
        "taken for a video": len(shown),
        "hangs or crashes": sum(result["status"] == "hang or crash" for result in results),
    }
    print("\n| playlists, scripts, links | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for result in results:
        if result["opened"] or result in shown or result["status"] == "hang or crash":
            print(f"  {result}")
    print(Counter(result["status"] for result in results))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main(
        Path(sys.argv[1]).absolute(),
        int(sys.argv[2]) if len(sys.argv) > 2 else 1000,
        int(sys.argv[3]) if len(sys.argv) > 3 else 0,
    )
