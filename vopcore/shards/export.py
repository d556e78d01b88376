"""Shards as WebDataset tars, for other people's loaders: JPEG frames, captions and facts of each video."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from vopcore.shards.read import Shards
from vopcore.shards.schema import encode_jpeg

QUALITY = 95
PER_TAR = 1000  # videos


def export_webdataset(
    shards: Shards,
    annotations: pa.Table,
    folder: Path,
    per_tar: int = PER_TAR,
) -> list[Path]:
    """Write the decoded videos of each split to `folder`/SPLIT-00000.tar and so on; returns the tars.

    annotations: rows of ANNOTATIONS. A sample is KEY.000.jpg, KEY.001.jpg, ... (frames in order), KEY.txt
    (its first caption) and KEY.json (`video`, `split`, `captions`, and what the shard says of the video). A
    tar is there whole or not at all. Videos without a frame are left out.
    """
    captions_of: dict[str, dict[str, list[str]]] = {}
    for row in annotations.select(["split", "video", "caption"]).to_pylist():
        captions_of_split = captions_of.setdefault(row["split"], {})
        captions_of_split.setdefault(row["video"], []).append(row["caption"])

    folder.mkdir(parents=True, exist_ok=True)
    tars = []
    for split, captions in captions_of.items():
        decoded = [video for video in captions if video in shards.videos and shards.num_frames(video)]
        for start in range(0, len(decoded), per_tar):
            number = start // per_tar
            path = folder / f"{split}-{number:05}.tar"
            videos = decoded[start : start + per_tar]
            samples = {video: captions[video] for video in videos}
            _write_tar(
                path,
                split,
                start,
                samples,
                shards,
            )
            tars.append(path)
    return tars


def _write_tar(
    path: Path,
    split: str,
    start: int,
    samples: Mapping[str, Sequence[str]],
    shards: Shards,
) -> None:
    partial = path.with_name(f"{path.name}.part")
    with tarfile.open(partial, "w") as archive:
        for number, (video, captions) in enumerate(samples.items(), start):
            # a video's name may hold dots and slashes, a key may not
            key = f"{number:09}"
            for frame_number, frame in enumerate(shards.frames(video)):
                jpeg = encode_jpeg(frame, QUALITY)
                _add(archive, f"{key}.{frame_number:03}.jpg", jpeg)

            entry = asdict(shards.videos[video])
            facts = {
                "split": split,
                "captions": list(captions),
                **entry,
            }
            _add(archive, f"{key}.txt", captions[0].encode())
            _add(archive, f"{key}.json", json.dumps(facts).encode())
    partial.replace(path)


def _add(
    archive: tarfile.TarFile,
    name: str,
    data: bytes,
) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
