"""Does a search find the seconds? Long videos are spliced from clips of coloured balls, indexed, and asked.

run: python tests/benchmarks/bench_seconds.py MODEL [seconds=2] [every=1] [pairs=held_out]

MODEL: the folder of a saved model of the quickstart, `data/search` of an MLflow model, tuned in its world. A
clip shows one ball and then another; so does the end of one clip with the beginning of the next, and both
count as showing it. `found`: the best frame of the best answer over ALL videos lies where the caption is
shown. Overlap is intersection over union of seconds. With `pairs=train` the videos show pairs of colours that
the model was tuned on: the levels of vopcore/index/moments.py were chosen there, and never on the others.
"""

import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.indexing.driver import join
from pipelines.indexing.task import DecodeSettings, Ending, decode_windows
from vopcore.datasets import shapes
from vopcore.index import (
    Answer,
    Index,
    IndexedVideo,
    IndexHeader,
    Question,
    WindowRule,
    open_index,
    write_header,
)
from vopcore.index.encode import TextEncoder, WindowEncoder, read_settings
from vopcore.index.model import prepare_text_tower
from vopcore.metrics.moments import overlap
from vopcore.storage import Store
from vopcore.video import DECODER_VERSION

TWINS = 33  # pairs of colours that the quickstart holds out
CLIPS = 33  # of a long video: about 66 s
LONG_VIDEOS = 4


@dataclass(frozen=True)
class Clip:
    """A stretch of a long video that shows what `caption` says, in seconds."""

    video: str
    caption: str
    start: float
    end: float


def pairs_of_colours(held_out: bool) -> list[tuple[str, str]]:
    """Those that the quickstart tests with, or those that it trains with."""
    pairs = list(itertools.combinations(shapes.COLOURS, 2))
    np.random.default_rng([0, 0]).shuffle(pairs)
    return pairs[:TWINS] if held_out else pairs[TWINS:]


def splice(folder: Path, number: int, held_out: bool, with_twins: bool) -> list[Clip]:
    """Write one long video; with twins every second clip is another in the opposite order."""
    rng = np.random.default_rng([7, number, held_out, with_twins])
    pairs = pairs_of_colours(held_out)
    ordered = [tuple(rng.permutation(pair).tolist()) for pair in rng.permutation(pairs)[:CLIPS]]
    if with_twins:
        ordered += [(second, first) for first, second in ordered]
        ordered = [ordered[place] for place in rng.permutation(len(ordered))]

    name = f"{number:02}.mp4"
    scenes = []
    pictures = []
    num_frames = 0
    for first, second in ordered:
        frames = shapes.video_frames(rng, first, second)
        middle = num_frames + len(frames) // 2
        end = num_frames + len(frames)
        scenes += [(first, num_frames, middle), (second, middle, end)]
        num_frames = end
        pictures.append(frames)
    shapes.write_video(folder / name, np.concatenate(pictures), "libx264", sound=False)

    clips = []
    for (first, start, _), (second, _, end) in itertools.pairwise(scenes):
        caption = f"{shapes.ball(first)} and then {shapes.ball(second)}"
        clips.append(Clip(name, caption, start / shapes.FPS, end / shapes.FPS))
    return clips


def make_index(folder: Path, videos: Path, model: Path, rule: WindowRule) -> Index:
    """An index of these videos as `index.py` makes it, in this process."""
    facts = prepare_text_tower(model)
    encoder = WindowEncoder(model)
    header = IndexHeader(
        root=str(videos),
        engine="arrow",
        dimension=facts.dimension,
        pooling=facts.pooling,
        seconds=rule.seconds,
        every=rule.every,
        frames=facts.frames,
        method=facts.method,
        model=facts.model,
        backbone=facts.backbone,
        tuned=facts.tuned,
        decoder=DECODER_VERSION,
    )
    write_header(Store(folder), header)
    settings = read_settings(model)
    decoding = DecodeSettings(
        root=str(videos),
        rule=rule,
        frames=settings.frames,
        size=settings.size,
        sampler=settings.sampler,
        time_limit=600,
        resize=settings.resize,
        interpolation=settings.interpolation,
    )
    rows = []
    for path in sorted(videos.iterdir()):
        *pieces, ending = decode_windows(decoding, path.name)
        assert isinstance(ending, Ending)
        assert ending.status == "ok", ending.error
        entry = IndexedVideo(video=path.name, size=1, mtime=0.0, duration=ending.duration)
        rows.append((entry, join([encoder.rows(piece) for piece in pieces])))
    index = open_index(str(folder))
    index.table.add(rows)
    return index


def overlap_of(answer: Answer, caption: str, clips: Sequence[Clip]) -> float | None:
    """With the clip that the answer covers best; None where its best frame is in no clip of that caption."""
    found = None
    for clip in clips:
        if (clip.video, clip.caption) == (answer.video, caption) and clip.start <= answer.best <= clip.end:
            found = max(found or 0.0, overlap(answer.start, answer.end, clip.start, clip.end))
    return found


def asked_for(clips: Sequence[Clip]) -> list[str]:
    """Every caption of two colours, once."""
    captions = {clip.caption for clip in clips}
    return sorted(caption for caption in captions if caption.split()[1] != caption.split()[5])


def worlds(
    folder: Path, model: Path, rule: WindowRule, held_out: bool
) -> Iterator[tuple[str, Index, list[Clip]]]:
    """An index of long videos, without and with the twin of each clip."""
    for with_twins in (False, True):
        place = folder / f"{held_out}-{with_twins}"
        videos = place / "videos"
        videos.mkdir(parents=True)
        clips = []
        for number in range(LONG_VIDEOS):
            clips += splice(videos, number, held_out, with_twins)
        yield "yes" if with_twins else "no", make_index(place / "index", videos, model, rule), clips


def main(argv: Sequence[str]) -> None:
    """Print a row per world."""
    torch.set_num_threads(2)
    options = dict(word.split("=") for word in argv[1:])
    model = Path(argv[0])
    rule = WindowRule(float(options.get("seconds", 2)), float(options.get("every", 1)))
    held_out = options.get("pairs", "held_out") == "held_out"

    print("| twins | captions | found % | of these overlap >= 0.5 | >= 0.7 | mIoU | of all >= 0.5 |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for twins, index, clips in worlds(Path(scratch), model, rule, held_out):
            captions = asked_for(clips)
            overlaps = []
            for caption, feature in zip(captions, TextEncoder(model).encode(captions), strict=True):
                (answer,) = index.search(Question(features=feature, top=1))
                shared = overlap_of(answer, caption, clips)
                if shared is not None:
                    overlaps.append(shared)

            of_found = np.array(overlaps)
            print(
                f"| {twins} | {len(captions)} | {100 * len(overlaps) / len(captions):.0f} | "
                f"{100 * (of_found >= 0.5).mean():.0f} | {100 * (of_found >= 0.7).mean():.0f} | "
                f"{100 * of_found.mean():.0f} | {100 * (of_found >= 0.5).sum() / len(captions):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
