"""A small world of coloured balls: stills that say what and where, videos that also say when.

A video shows one ball and then another ("a red ball and then a blue ball"). Its twin is the same video played
backwards, whose caption has the order swapped: the frames are the same, only their order tells the two apart.
`render` writes such videos as real files with a `captions.jsonl` that the `folder` reader takes; `stills`
draws what a CLIP of this world is trained on.
"""

import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

COLOURS = {
    "red": (225, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 230, 60),
    "green": (30, 150, 50),
    "lime": (150, 250, 90),
    "cyan": (60, 225, 235),
    "blue": (40, 70, 230),
    "purple": (130, 40, 180),
    "pink": (250, 130, 200),
    "white": (250, 250, 250),
    "brown": (130, 80, 40),
    "grey": (140, 140, 140),
}
VERSION = 2  # of what `render` and `stills` draw
SIDE = 64  # pixels of a video's side
FPS = 25
RADIUS = (0.20, 0.24)  # of a ball, as a share of the side
BROKEN = ("truncated.mp4", "not_a_video.mp4")  # two files that are broken on purpose

# suffix -> codec: what people's folders hold; every 25th video takes the next of the rarer ones
CODECS = {
    ".mp4": "libx264",
    ".hevc.mp4": "libx265",
    ".webm": "libvpx-vp9",
    ".avi": "mpeg4",
}
CODEC_OPTIONS: dict[str, dict[str, object]] = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libx265": {
        "preset": "ultrafast",
        "crf": "22",
        "x265-params": "log-level=none:pools=1",
    },
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime", "crf": "30", "b": "0"},
    "mpeg4": {"qscale": "3", "bf": "2"},
}
SOUND_RATE = 16_000  # samples per second
SOUND_FRAME = 1024  # samples that AAC encodes at a time


@dataclass(frozen=True)
class PlannedVideo:
    """A video to render: `first` and `second` are colours, `number` seeds what else is drawn at random.

    reversed: it is rendered in the other order and played backwards.
    """

    name: str
    split: str
    first: str
    second: str
    number: int
    reversed: bool = False

    @property
    def caption(self) -> str:
        return f"{ball(self.first)} and then {ball(self.second)}"


def ball(colour: str) -> str:
    """`a red ball`."""
    return f"a {colour} ball"


def draw(
    canvas: np.ndarray,
    colour: str,
    centre: tuple[float, float],
    radius: float,
) -> None:
    """Paint a ball onto `canvas` (uint8 [S, S, 3]), `centre` as (x, y) and `radius` in pixels."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    centre_x, centre_y = centre
    distance = np.hypot(x - centre_x, y - centre_y)

    # half a pixel of soft edge
    alpha = np.clip(radius - distance + 0.5, 0, 1)
    alpha = alpha[..., None]
    paint = np.array(COLOURS[colour])
    painted = canvas * (1 - alpha) + paint * alpha
    canvas[:] = painted.astype(np.uint8)


def background(rng: np.random.Generator, side: int) -> np.ndarray:
    """A dark, faintly noisy ground: uint8 [side, side, 3]."""
    brightness = rng.integers(10, 90)
    noise = rng.normal(0, 4, (side, side, 3))
    ground = np.clip(brightness + noise, 0, 255)
    return ground.astype(np.uint8)


def stills(
    rng: np.random.Generator,
    count: int,
    side: int,
) -> tuple[np.ndarray, list[str]]:
    """Draw `count` stills, uint8 [count, side, side, 3], and their captions.

    One ball on the left or on the right, or one left of another. Each still is followed by the same one with
    left and right swapped: beside its own opposite, a CLIP has to learn where a ball is.
    """
    images: list[np.ndarray] = []
    captions: list[str] = []
    while len(images) < count:
        ground = background(rng, side)
        radius = side * rng.uniform(*RADIUS)
        left = side * rng.uniform(0.20, 0.32)
        first, second = rng.choice(list(COLOURS), 2, replace=False).tolist()

        # one ball, on either side
        if rng.random() < 0.4:
            height = side * rng.uniform(0.35, 0.65)
            for place, x in (("left", left), ("right", side - left)):
                image = ground.copy()
                draw(image, first, (x, height), radius)
                images.append(image)
                captions.append(f"{ball(first)} on the {place}")
            continue

        # two balls, in either order
        right = side * rng.uniform(0.68, 0.80)
        heights = side * rng.uniform(0.35, 0.65, 2)
        for one, other in ((first, second), (second, first)):
            image = ground.copy()
            draw(image, one, (left, heights[0]), radius)
            draw(image, other, (right, heights[1]), radius)
            images.append(image)
            captions.append(f"{ball(one)} left of {ball(other)}")

    # the last pair may be one too many
    return np.stack(images[:count]), captions[:count]


def still_captions() -> list[str]:
    """Every caption that `stills` can give, once each."""
    captions = []
    for colour in COLOURS:
        captions += [f"{ball(colour)} on the {place}" for place in ("left", "right")]
    for one, other in itertools.permutations(COLOURS, 2):
        captions.append(f"{ball(one)} left of {ball(other)}")
    return captions


def video_frames(
    rng: np.random.Generator,
    first: str,
    second: str,
    side: int = SIDE,
) -> np.ndarray:
    """The pictures of one video, uint8 [T, side, side, 3]: the ball `first` drifting about the middle, then
    `second`, 1.6 to 2.4 s.
    """
    frames_per_ball = int(rng.integers(20, 31))
    ground = background(rng, side)
    frames = []
    for colour in (first, second):
        radius = side * rng.uniform(*RADIUS)
        start = side * rng.uniform(0.42, 0.58, 2)
        drift = rng.uniform(-6, 6, 2)
        for time in np.linspace(0, 1, frames_per_ball):
            frame = ground.copy()
            centre = tuple(start + time * drift)
            draw(frame, colour, centre, radius)
            frames.append(frame)
    return np.stack(frames)


def write_video(
    path: Path,
    frames: np.ndarray,
    codec: str,
    sound: bool,
) -> None:
    """Encode uint8 [T, H, W, 3] at 25 fps with the codec's own GOP and B-frames; `sound` adds a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # several videos are encoded at once
        stream.options = CODEC_OPTIONS[codec]
        audio = container.add_stream("aac", rate=SOUND_RATE) if sound else None

        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            for packet in _tone(audio, len(frames) / FPS):
                container.mux(packet)


def _tone(
    stream: av.AudioStream,
    seconds: float,
) -> "Iterator[av.Packet[av.AudioStream]]":
    samples = np.arange(int(SOUND_RATE * seconds))
    wave = 0.2 * np.sin(samples * 0.17)
    wave = wave.astype(np.float32)
    for start in range(0, len(wave), SOUND_FRAME):
        chunk = wave[None, start : start + SOUND_FRAME]
        sound = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        sound.sample_rate = SOUND_RATE
        sound.pts = start
        sound.time_base = Fraction(1, SOUND_RATE)
        yield from stream.encode(sound)
    yield from stream.encode(None)


def _plan(
    videos: int,
    twins: int,
    seed: int,
) -> list[PlannedVideo]:
    """Every video to render; no pair of colours is in both splits, twins are adjacent."""
    pairs = list(itertools.combinations(COLOURS, 2))
    if not 0 < twins < len(pairs):
        raise ValueError(f"shapes.twins: {twins} is out of range, choose 1 to {len(pairs) - 1}")
    rng = np.random.default_rng([seed, 0])
    rng.shuffle(pairs)

    plan = []
    for i, (first, second) in enumerate(pairs[:twins]):
        # the same number: what is drawn at random is the same in both
        number = 2 * i
        plan.append(
            PlannedVideo(
                f"test{i:04}",
                "test",
                first,
                second,
                number,
            )
        )
        plan.append(
            PlannedVideo(
                f"test{i:04}_twin",
                "test",
                second,
                first,
                number,
                reversed=True,
            )
        )

    train_pairs = pairs[twins:]
    for i in range(videos):
        pair_number = int(rng.integers(len(train_pairs)))
        first, second = rng.permutation(train_pairs[pair_number]).tolist()
        number = 2 * twins + i
        plan.append(
            PlannedVideo(
                f"train{i:05}",
                "train",
                first,
                second,
                number,
            )
        )
    return plan


def render(
    root: Path,
    videos: int,
    twins: int,
    seed: int,
) -> Iterator[str]:
    """Write the corpus under `root`, yielding each video's path as it is done; `captions.jsonl` comes last.

    `videos` to train on, `twins` test videos beside their reversed twins, and two training entries that are
    broken on purpose: a file cut off in the middle and one that is no video at all.
    """
    folder = root / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(videos, twins, seed)

    def write(entry: tuple[int, PlannedVideo]) -> Path:
        index, video = entry
        return _write_planned(folder, index, video, seed)

    lines: list[dict[str, Any]] = []
    num_threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        paths = pool.map(write, enumerate(plan))
        for video, path in zip(plan, paths, strict=True):
            name = f"videos/{path.name}"
            lines.append({"video": name, "split": video.split, "captions": [video.caption]})
            yield name

    last_video = root / lines[-1]["video"]
    _write_broken(folder, last_video)
    for name in BROKEN:
        caption = "a red ball and then a blue ball"
        lines.append({"video": f"videos/{name}", "split": "train", "captions": [caption]})

    # its presence says that the corpus is complete
    text = "".join(json.dumps(line) + "\n" for line in lines)
    partial = root / "captions.jsonl.part"
    partial.write_text(text)
    partial.rename(root / "captions.jsonl")


def _write_planned(
    folder: Path,
    index: int,
    video: PlannedVideo,
    seed: int,
) -> Path:
    """Draw and encode one video; returns its file."""
    # a twin has the codec of its video, or the codec would tell them apart: the test split is H.264
    suffix = ".mp4"
    if index % 25 == 0 and video.split != "test":
        rarer = list(CODECS)[1:]
        turn = index // 25
        suffix = rarer[turn % len(rarer)]
    codec = CODECS[suffix]

    rng = np.random.default_rng([seed, 1, video.number])
    if video.reversed:
        forwards = video_frames(rng, video.second, video.first)
        frames = forwards[::-1]
    else:
        frames = video_frames(rng, video.first, video.second)

    path = folder / f"{video.name}{suffix}"
    has_sound = index % 10 == 3 and codec == "libx264"
    write_video(path, frames, codec, has_sound)
    return path


def _write_broken(folder: Path, whole: Path) -> None:
    """The two files that cannot be decoded."""
    truncated, no_video = BROKEN
    content = whole.read_bytes()
    half = len(content) // 2
    (folder / truncated).write_bytes(content[:half])
    (folder / no_video).write_text("<html>404 Not Found</html>\n")
