"""`webdataset`: tars as video2dataset writes them, a video with its caption and facts as three files each.

    train/00000.tar:  000000012.mp4  000000012.txt  000000012.json

The split of a tar is the folder it is in (train, val, test), else the word its name begins with
(`test-00000.tar`), else the `split` in a sample's JSON. The caption is the text file, else `caption` or
`captions` of the JSON. Videos are unpacked once to the videos' folder, by default `unpacked` beside the tars:
a decoder reads files. https://github.com/iejMac/video2dataset, https://github.com/webdataset/webdataset
"""

import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from vopcore.datasets.errors import DatasetError, Line
from vopcore.datasets.match import VideoFiles, VideosFolder
from vopcore.datasets.table import SPLITS, Reading, is_safe
from vopcore.storage import display, open_uri, written_whole

VIDEOS = ("mp4", "webm", "mkv", "mov", "avi")
UNPACKED = "unpacked"


@dataclass
class TarSample:
    """The files of one key in a tar. `facts`: its JSON; `video`: where the video was unpacked."""

    key: str
    caption: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    video: Path | None = None


def webdataset(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """ANNOTATIONS of all tars below `annotations`, in the order of their names.

    Raises DatasetError where there is no tar, where one is damaged, where a sample has no split, and where
    the videos' folder is in an object store, to which nothing is unpacked.
    """
    if not annotations.is_dir():
        raise DatasetError(f"the annotations' folder {annotations} does not exist")
    tars = sorted(annotations.rglob("*.tar"))
    if not tars:
        raise DatasetError(f"{annotations}: holds no *.tar")

    # everything is unpacked before the folder is listed: a listing does not grow
    folder = unpacked_folder(annotations, videos)
    samples = []
    for tar in tars:
        folder_of_tar = folder / tar.relative_to(annotations).with_suffix("")
        samples += [(tar, sample) for sample in read_tar(tar, folder_of_tar)]

    folder.mkdir(parents=True, exist_ok=True)
    reading = Reading(VideoFiles(folder), by_path=True)
    for tar, sample in samples:
        _add(
            reading,
            sample,
            tar,
            annotations,
            folder,
        )
    if reading.is_empty:
        raise DatasetError(f"{annotations}: no sample of its {len(tars)} tars has a video and a caption")
    return reading.table("webdataset")


def unpacked_folder(annotations: Path, videos: str | Path | VideosFolder) -> Path:
    """Where videos are unpacked to: the videos' folder, or one beside the tars if that is the tars' own."""
    place = videos.place if isinstance(videos, VideosFolder) else str(videos)
    try:
        filesystem, root = open_uri(place)
    except ValueError as error:
        raise DatasetError(f"the videos' folder {error}") from error
    if not isinstance(filesystem, fs.LocalFileSystem):
        raise DatasetError(f"{display(place)}: tars are unpacked to a local folder; name one as data.videos")

    folder = Path(root)
    if folder.is_dir() and folder.samefile(annotations):
        return folder / UNPACKED
    return folder


def read_tar(tar: Path, folder: Path) -> Iterator[TarSample]:
    """The samples of a tar; their videos are unpacked to `folder`, unless they are there."""
    try:
        with tarfile.open(tar) as archive:
            sample: TarSample | None = None
            for member in archive:
                # a link, a device, a path out of the tar
                if not member.isfile() or not is_safe(member.name):
                    continue
                key, _, ending = member.name.partition(".")
                if not ending:
                    continue

                # the files of a sample follow one another
                if sample is not None and sample.key != key:
                    yield sample
                    sample = None
                if sample is None:
                    sample = TarSample(key)
                _read_member(
                    archive,
                    member,
                    ending.lower(),
                    sample,
                    folder,
                )

            if sample is not None:
                yield sample
    except (tarfile.TarError, OSError, EOFError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{tar}: {cause}") from None


def _read_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    ending: str,
    sample: TarSample,
    folder: Path,
) -> None:
    stream = archive.extractfile(member)
    assert stream is not None, "a regular file has content"

    if ending in VIDEOS:
        sample.video = folder / member.name
        is_unpacked = sample.video.is_file() and sample.video.stat().st_size == member.size
        if not is_unpacked:
            with written_whole(sample.video) as partial, partial.open("wb") as file:
                shutil.copyfileobj(stream, file)
    elif ending == "txt":
        sample.caption = stream.read().decode(errors="replace").strip()
    elif ending == "json":
        try:
            facts = json.loads(stream.read())
        except (ValueError, RecursionError):
            facts = None
        sample.facts = facts if isinstance(facts, dict) else {}


def _add(
    reading: Reading,
    sample: TarSample,
    tar: Path,
    root: Path,
    folder: Path,
) -> None:
    where = Line(tar)
    if sample.video is None:
        reading.problem(
            where,
            f"sample {sample.key!r} left out: no video ({', '.join(VIDEOS)})",
        )
        return

    tar_name = tar.relative_to(root).with_suffix("")
    path = sample.video.relative_to(folder).as_posix()
    split = _split(tar, root, sample)
    reading.add(
        split,
        f"{tar_name}/{sample.key}",
        _captions(sample),
        where,
        names=[path],
    )


def _split(
    tar: Path,
    root: Path,
    sample: TarSample,
) -> str:
    """The split by the tar's folder, its name, or the sample's JSON."""
    folder = tar.relative_to(root).parts[0]
    word = re.split("[-_]", tar.name)[0]
    for candidate in (folder, word, sample.facts.get("split")):
        if candidate in SPLITS:
            return candidate
    raise DatasetError(
        f"{tar}: sample {sample.key!r} has no split; put tars into folders {', '.join(SPLITS)},"
        " or begin their names with the split"
    )


def _captions(sample: TarSample) -> list[Any]:
    """The text file, or what the JSON has; whatever it is, `Reading.add` checks it."""
    if sample.caption:
        return [sample.caption]
    captions = sample.facts.get("captions")
    if isinstance(captions, list):
        return captions

    caption = sample.facts.get("caption")
    if caption is None:
        return []
    return [caption]
