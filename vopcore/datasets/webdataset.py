"""`webdataset`: tars as video2dataset writes them, a video with its caption and facts as three files each.

    train/00000.tar:  000000012.mp4  000000012.txt  000000012.json

The split of a tar is the folder it is in (train, val, test), else the word its name begins with
(`test-00000.tar`), else the `split` in a sample's JSON. The caption is the text file, else `caption` or
`captions` of the JSON. Videos are unpacked once to the videos' folder, by default `unpacked` beside the tars:
a decoder reads files. https://github.com/iejMac/video2dataset, https://github.com/webdataset/webdataset
"""

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from vopcore.datasets.errors import DatasetError, Line
from vopcore.datasets.table import SPLITS, Reading, is_safe

VIDEOS = ("mp4", "webm", "mkv", "mov", "avi")
UNPACKED = "unpacked"


@dataclass
class TarSample:
    """The files of one key in a tar. `facts`: its JSON; `video`: where the video was unpacked."""

    key: str
    caption: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    video: Path | None = None


def webdataset(annotations: Path, videos: str | Path) -> pa.Table:
    """ANNOTATIONS of all tars below `annotations`, in the order of their names.

    Raises DatasetError where there is no tar, where one is damaged, and where a sample has no split.
    """
    tars = sorted(annotations.rglob("*.tar"))
    if not tars:
        raise DatasetError(f"{annotations}: holds no *.tar")

    folder = Path(videos)
    if folder == annotations:
        folder = annotations / UNPACKED
    reading = Reading(lambda names: [str(folder / name) for name in names])  # they were unpacked there
    for tar in tars:
        for sample in read_tar(tar, folder / tar.relative_to(annotations).with_suffix("")):
            _add(reading, sample, tar, annotations, folder)
    if not reading.clips:
        raise DatasetError(f"{annotations}: no sample of its {len(tars)} tars has a video and a caption")
    return reading.table("webdataset")


def read_tar(tar: Path, folder: Path) -> Iterator[TarSample]:
    """The samples of a tar; their videos are unpacked to `folder`, unless they are there."""
    try:
        with tarfile.open(tar) as archive:
            sample: TarSample | None = None
            for member in archive:
                key, _, ending = member.name.partition(".")
                if not member.isfile() or not is_safe(member.name) or not ending:
                    continue  # a link, a device, a path out of the tar
                if sample is not None and sample.key != key:
                    yield sample
                    sample = None
                sample = sample or TarSample(key)
                _read_member(archive, member, ending.lower(), sample, folder)
            if sample is not None:
                yield sample
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{tar}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _read_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str, sample: TarSample, folder: Path
) -> None:
    stream = archive.extractfile(member)
    assert stream is not None, "a regular file has content"

    if ending in VIDEOS:
        sample.video = folder / member.name
        if not sample.video.is_file() or sample.video.stat().st_size != member.size:
            sample.video.parent.mkdir(parents=True, exist_ok=True)
            part = sample.video.with_name(f"{sample.video.name}.part{os.getpid()}")
            with part.open("wb") as file:
                shutil.copyfileobj(stream, file)
            part.replace(sample.video)
    elif ending == "txt":
        sample.caption = stream.read().decode(errors="replace").strip()
    elif ending == "json":
        try:
            facts = json.loads(stream.read())
        except (ValueError, RecursionError):
            facts = None
        sample.facts = facts if isinstance(facts, dict) else {}


def _add(reading: Reading, sample: TarSample, tar: Path, root: Path, folder: Path) -> None:
    where = Line(tar)
    if sample.video is None:
        reading.problem(where, f"sample {sample.key!r} left out: no video ({', '.join(VIDEOS)})")
        return
    name = f"{tar.relative_to(root).with_suffix('')}/{sample.key}"
    split = _split(tar, root, sample)
    reading.add(split, name, _captions(sample), where, names=[str(sample.video.relative_to(folder))])


def _split(tar: Path, root: Path, sample: TarSample) -> str:
    folder = tar.relative_to(root).parts[0]
    word = tar.name.split("-")[0].split("_")[0]
    for candidate in (folder, word, sample.facts.get("split")):
        if candidate in SPLITS:
            return candidate
    raise DatasetError(
        f"{tar}: sample {sample.key!r} has no split; put tars into folders {', '.join(SPLITS)},"
        " or begin their names with the split"
    )


def _captions(sample: TarSample) -> list[Any]:
    if sample.caption:
        return [sample.caption]
    captions = sample.facts.get("captions")
    if isinstance(captions, list):
        return captions
    caption = sample.facts.get("caption")
    return [caption] if caption is not None else []
