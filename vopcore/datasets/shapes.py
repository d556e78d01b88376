"""A small world of coloured shapes: stills that say what and where, clips that also say when.

A clip shows one object and then another ("a red circle then a blue square"). Its twin is the same clip
played backwards, whose caption has the order swapped: the frames are the same, only their order tells the
two apart. `render` writes such clips as real video files with a `captions.jsonl` that the `folder` reader
takes; `stills` draws what a CLIP of this world is trained on.
"""

import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (160, 60, 200),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
OBJECTS = tuple(itertools.product(COLOURS, SHAPES))
VERSION = 1  # of what `render` and `stills` draw
SIDE = 64  # pixels of a clip's side
FPS = 25
FORMATS = {  # suffix -> codec: what people's folders hold; every 25th clip takes the next of the rarer ones
    ".mp4": "libx264",
    ".hevc.mp4": "libx265",
    ".webm": "libvpx-vp9",
    ".avi": "mpeg4",
}

Object = tuple[str, str]  # colour, shape


def draw(canvas: np.ndarray, thing: Object, centre: tuple[float, float], radius: float) -> None:
    """Paint one object onto `canvas` (uint8 [S, S, 3]), `centre` as (x, y) and `radius` in pixels."""
    colour, shape = thing
    y, x = np.mgrid[: canvas.shape[0], : canvas.shape[1]].astype(np.float32)
    dx, dy = np.abs(x - centre[0]), y - centre[1]
    distance = np.hypot(dx, dy)
    inside = {
        "circle": radius - distance,
        "ring": 0.28 * radius - np.abs(distance - 0.72 * radius),
        "square": 0.85 * radius - np.maximum(dx, np.abs(dy)),
        "triangle": np.minimum(0.8 * radius - dy, (dy + radius) * 0.5 - dx),
        "cross": np.maximum(
            np.minimum(0.3 * radius - dx, radius - np.abs(dy)),
            np.minimum(radius - dx, 0.3 * radius - np.abs(dy)),
        ),
    }[shape]
    alpha = np.clip(inside + 0.5, 0, 1)[..., None]  # half a pixel of soft edge
    canvas[:] = (canvas * (1 - alpha) + np.array(COLOURS[colour]) * alpha).astype(np.uint8)


def background(rng: np.random.Generator, side: int) -> np.ndarray:
    """A dark, faintly noisy ground: uint8 [side, side, 3]."""
    ground = rng.integers(10, 90) + rng.normal(0, 4, (side, side, 3))
    return np.clip(ground, 0, 255).astype(np.uint8)


def name(thing: Object) -> str:
    """`a red circle`."""
    return f"a {thing[0]} {thing[1]}"


def stills(rng: np.random.Generator, count: int, side: int) -> tuple[np.ndarray, list[str]]:
    """Draw `count` stills, uint8 [count, side, side, 3], and their captions; half hold two objects."""
    images, captions = np.empty((count, side, side, 3), np.uint8), []
    for image in images:
        image[:] = background(rng, side)
        radius = side * rng.uniform(0.16, 0.24)
        if rng.random() < 0.5:
            thing = OBJECTS[rng.integers(len(OBJECTS))]
            draw(image, thing, tuple(rng.uniform(radius, side - radius, 2)), radius)
            captions.append(name(thing))
        else:
            first, second = (OBJECTS[i] for i in rng.choice(len(OBJECTS), 2, replace=False))
            near, far = side * rng.uniform(0.22, 0.3), side * rng.uniform(0.7, 0.78)
            across = side * rng.uniform(0.3, 0.7, 2)
            beside = rng.random() < 0.5
            places = [(near, across[0]), (far, across[1])]
            for thing, place in zip((first, second), places, strict=True):
                draw(image, thing, place if beside else place[::-1], radius)
            captions.append(f"{name(first)} {'left of' if beside else 'above'} {name(second)}")
    return images, captions


def clip_frames(rng: np.random.Generator, first: Object, second: Object, side: int = SIDE) -> np.ndarray:
    """The pictures of one clip, uint8 [T, side, side, 3]: `first` drifting, then `second`, 1.6 to 2.4 s."""
    half = int(rng.integers(20, 31))
    ground, frames = background(rng, side), []
    for thing in (first, second):
        radius = side * rng.uniform(0.16, 0.26)
        start, drift = rng.uniform(radius, side - radius, 2), rng.uniform(-6, 6, 2)
        for t in np.linspace(0, 1, half):
            frames.append(ground.copy())
            draw(frames[-1], thing, tuple(start + t * drift), radius)
    return np.stack(frames)


def write_video(path: Path, frames: np.ndarray, codec: str, sound: bool) -> None:
    """Encode uint8 [T, H, W, 3] at 25 fps with the codec's own GOP and B-frames; `sound` adds a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {
            "libx264": {"preset": "veryfast", "crf": "20"},
            "libx265": {"preset": "ultrafast", "crf": "22", "x265-params": "log-level=none:pools=1"},
            "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime", "crf": "30", "b": "0"},
            "mpeg4": {"qscale": "3", "bf": "2"},
        }[codec]
        audio = container.add_stream("aac", rate=16_000) if sound else None
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
        if audio is not None:
            container.mux(_tone(audio, len(frames) / FPS))


def _tone(stream: av.AudioStream, seconds: float) -> Iterator[av.Packet]:
    wave = (0.2 * np.sin(np.arange(int(16_000 * seconds)) * 0.17)).astype(np.float32)
    for start in range(0, len(wave), 1024):
        sound = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = 16_000, start, Fraction(1, 16_000)
        yield from stream.encode(sound)
    yield from stream.encode(None)


def _plan(clips: int, twins: int, seed: int) -> list[tuple[str, str, Object, Object]]:
    """(id, split, first, second) of every clip; no pair of objects is in both splits, twins are adjacent."""
    pairs = list(itertools.combinations(OBJECTS, 2))
    if not 0 < twins < len(pairs):
        raise ValueError(f"shapes.twins: {twins} is out of range, choose 1 to {len(pairs) - 1}")
    rng = np.random.default_rng([seed, 0])
    rng.shuffle(pairs)
    plan = []
    for i, (first, second) in enumerate(pairs[:twins]):
        plan += [(f"test{i:04}", "test", first, second), (f"test{i:04}_twin", "test", second, first)]
    for i in range(clips):
        first, second = rng.permutation(pairs[twins + int(rng.integers(len(pairs) - twins))]).tolist()
        plan.append((f"train{i:05}", "train", tuple(first), tuple(second)))
    return plan


def render(root: Path, clips: int, twins: int, seed: int) -> Iterator[str]:
    """Write the corpus under `root`, yielding each clip's id as it is done; `captions.jsonl` comes last.

    `clips` training clips, `twins` test clips beside their reversed twins, and two training entries that
    cannot be decoded: a file cut off in the middle and one that is no video at all.
    """
    folder = root / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(clips, twins, seed)

    def one(entry: tuple[int, tuple[str, str, Object, Object]]) -> dict:
        index, (video, split, first, second) = entry
        twin = video.endswith("_twin")
        rare = 0 if index % 25 or split == "test" else 1 + index // 25 % (len(FORMATS) - 1)
        suffix, codec = list(FORMATS.items())[rare]
        path = folder / f"{video}{suffix}"
        shown = (
            (second, first) if twin else (first, second)
        )  # the twin draws its original, then turns it round
        frames = clip_frames(np.random.default_rng([seed, 1, index - twin]), *shown)
        write_video(
            path, frames[::-1] if twin else frames, codec, sound=index % 10 == 3 and codec == "libx264"
        )
        caption = f"{name(first)} then {name(second)}"
        return {"video": f"videos/{path.name}", "split": split, "captions": [caption]}

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lines = []
        for line in pool.map(one, enumerate(plan)):
            lines.append(line)
            yield line["video"]
    whole = (folder / Path(lines[-1]["video"]).name).read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "not_a_video.mp4").write_text("<html>404 Not Found</html>\n")
    for broken in ("truncated.mp4", "not_a_video.mp4"):
        lines.append(
            {"video": f"videos/{broken}", "split": "train", "captions": ["a red circle then a blue square"]}
        )
    partial = root / "captions.jsonl.part"
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    partial.rename(root / "captions.jsonl")
