"""CPU time per video of our decoder beside others, in one run: python tests/benchmarks/bench_decode.py
FOLDER [repeats]

All give the same uniform frames at 224 x 224; what differs is how they get at them. Peers that are not
installed are left out (pip install torchcodec decord opencv-python-headless). Columns are ratios of CPU
time, median of interleaved repeats: other / ours, except for the last, which is ours / libavcodec fed
just the packets that the frames need.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import open_clip
import torch
from PIL import Image
from scenes import write_scene

from vopcore.video import decode
from vopcore.video.decode import SKIPPING_DECODERS
from vopcore.video.plan import runs
from vopcore.video.preprocess import Geometry, Preprocessor, preprocess
from vopcore.video.sample import uniform
from vopcore.video.source import Source

SMALL = {"seconds": 15, "width": 320, "height": 240}
LONG = {"seconds": 60, "width": 640, "height": 360}
MPEG4 = {**SMALL, "codec": "mpeg4", "gop": 12}
FILES = {
    "320x240 15 s MPEG-4 AVI": ("h.avi", {**MPEG4, "b_frames": 2}, 12),
    "320x240 15 s MPEG-4 AVI, 64 of 375": ("h.avi", {**MPEG4, "b_frames": 2}, 64),
    "320x240 15 s MPEG-4 AVI no B": ("i.avi", {**MPEG4, "b_frames": 0}, 12),
    "320x240 15 s MPEG-4 MP4 no B, 64 of 375": ("j.mp4", {**MPEG4, "b_frames": 0}, 64),
    "320x240 15 s H.264 MKV": ("k.mkv", SMALL, 12),
    "320x240 15 s H.264 MKV, 64 of 375": ("k.mkv", SMALL, 64),
    "320x240 15 s GOP 250": ("a.mp4", SMALL, 12),
    "320x240 15 s GOP 12": ("b.mp4", {**SMALL, "gop": 12}, 12),
    "320x240 15 s GOP 12 no B": ("c.mp4", {**SMALL, "gop": 12, "b_frames": 0}, 12),
    "640x360 60 s GOP 250": ("d.mp4", LONG, 64),
    "640x360 60 s GOP 12": ("e.mp4", {**LONG, "gop": 12}, 64),
    "640x360 60 s HEVC": (
        "f.mp4",
        {**LONG, "codec": "libx265", "options": {"preset": "fast", "x265-params": "log-level=none"}},
        64,
    ),
    "640x360 60 s VP9": (
        "g.webm",
        {**LONG, "codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "7"}},
        64,
    ),
}


TRANSFORM = open_clip.image_transform(224, is_train=False)  # PIL and torchvision, as the field preprocesses


def fit(frames: np.ndarray) -> np.ndarray:
    return preprocess(np.asarray(frames), frames[0].shape[:2], Geometry(224))


def ours(path: Path, ordinals: list[int]) -> np.ndarray:
    return decode(path, count=len(ordinals)).pixels


def naive(path: Path, ordinals: list[int]) -> np.ndarray:
    """Every frame decoded to an image, then the wanted ones picked; one thread."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_type = "NONE"
        images = [frame.to_image() for frame in container.decode(video=0)]
    return np.stack([TRANSFORM(images[ordinal]) for ordinal in ordinals])


def all_decoded(path: Path, ordinals: list[int]) -> np.ndarray:
    """Every frame decoded, only the wanted ones converted; one thread."""
    wanted, kept = set(ordinals), []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_type = "NONE"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
    return fit(kept)


def bare(path: Path, ordinals: list[int], converts: bool) -> Callable[[], None]:
    """libavcodec fed the needed packets, already in memory; skips what we skip."""
    source = Source(path)
    source.scan()
    order = source.packets.shown_in_order()
    targets = [int(order[ordinal]) for ordinal in ordinals]
    packets = list(source.replay())
    chosen = set(targets)
    plan = runs(source.packets, targets)
    times = {source.packets.pts[target] for target in targets}

    def feed() -> None:
        decoder = source.decoder
        preprocessor = Preprocessor([Geometry(224)])

        def convert(frames: list[av.VideoFrame]) -> None:
            for frame in frames:
                if converts and frame.pts in times:
                    preprocessor.add(frame.pts, frame)

        for run in plan:
            for position in range(run.first, run.last + 1):
                if decoder.name in SKIPPING_DECODERS:
                    decoder.skip_frame = "DEFAULT" if position in chosen else "NONREF"
                convert(decoder.decode(packets[position]))
            convert(decoder.decode(None))
            decoder.flush_buffers()
        preprocessor.finish()

    return feed


def peers() -> dict[str, Callable[[Path, list[int]], np.ndarray]]:
    """The other libraries that are here, each on one thread."""
    found = {"naive": naive, "all decoded": all_decoded}
    try:
        from torchcodec.decoders import VideoDecoder
        from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

        def torchcodec(path: Path, ordinals: list[int]) -> np.ndarray:
            decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode="exact")
            frames = decoder.get_frames_at(ordinals).data
            resized = resize(frames, 224, interpolation=InterpolationMode.BICUBIC, antialias=True)
            return center_crop(resized, [224, 224]).numpy()

        found["torchcodec"] = torchcodec
    except (ImportError, RuntimeError) as error:
        print(f"no torchcodec: {str(error).splitlines()[0]}")
    try:
        import decord as library

        def decord(path: Path, ordinals: list[int]) -> np.ndarray:
            return fit(library.VideoReader(str(path), num_threads=1).get_batch(ordinals).asnumpy())

        found["decord"] = decord
    except ImportError:
        print("no decord")
    try:
        import cv2

        def opencv_seeking(path: Path, ordinals: list[int]) -> np.ndarray:
            """As CLIP4Clip reads: set the position, read, for each frame."""
            cv2.setNumThreads(1)
            capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            kept = []
            for ordinal in ordinals:
                capture.set(cv2.CAP_PROP_POS_FRAMES, ordinal)
                kept.append(TRANSFORM(Image.fromarray(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))))
            return np.stack(kept)

        found["opencv seek"] = opencv_seeking
    except ImportError:
        print("no opencv")
    return found


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main(folder: Path, repeats: int) -> None:
    torch.set_num_threads(1)
    others = peers()
    columns = ["file, frames", "ours, ms", *(f"{name} / ours" for name in others), "ours / bare libavcodec"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for name, (file, scene, count) in FILES.items():
        path = write_scene(folder / file, **scene)
        ordinals = uniform(scene["seconds"] * 25, 25, count)
        ways = {"ours": ours, **others}
        work = {way: partial(read, path, ordinals) for way, read in ways.items()}
        work |= {
            "bare": bare(path, ordinals, converts=False),
            "converting": bare(path, ordinals, converts=True),
        }
        times = {way: [] for way in work}
        for _ in range(repeats if scene["seconds"] > 20 else 3 * repeats):
            for way, job in work.items():
                times[way].append(cpu_seconds(job))
        median = {way: statistics.median(taken) for way, taken in times.items()}
        ratios = [f"{median[way] / median['ours']:.2f}" for way in others]
        last = f"{median['ours'] / median['converting']:.2f} ({median['ours'] / median['bare']:.2f})"
        print(
            f"| {name}, {count} | {1000 * median['ours']:.0f} | {' | '.join(ratios)} | {last} |", flush=True
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
