"""VATEX (Wang et al., ICCV 2019) in the cut of HGR (Chen et al., CVPR 2020): ten English captions per video.

HGR keeps the 25,991 training clips and halves the 3,000 validation clips into val and test, so its lists
are needed: train_list.txt, val_list.txt, test_list.txt (TS2-Net, DGL, EMCL) or HGR's own
trn/val/tst_names.npy. Captions: ref_captions.json ({id: [sentence, ...]}; HGR, TS2-Net, DGL),
vatex_data.json ({id: {"enCap": [...]}}; EMCL), or the official vatex_training_v1.0.json and
vatex_validation_v1.0.json ([{"videoID", "enCap"}]). Videos: <id>.mp4, 10 s each, the id being <youtube
id>_<start>_<end>. TS2-Net and DGL use the test list as val too.
"""

from pathlib import Path

import pyarrow as pa

from vopcore.datasets.errors import DatasetError
from vopcore.datasets.files import (
    AnnotationFiles,
    entries,
    lists_by_video,
    read_ids,
    read_json,
)
from vopcore.datasets.match import VideoFiles, VideosFolder
from vopcore.datasets.table import Reading

# (videos, captions): the lists as EMCL holds them, ten captions each
PUBLISHED = {
    "train": (25_991, 259_910),
    "val": (1500, 15_000),
    "test": (1500, 15_000),
}

CAPTIONS = {
    "HGR / TS2-Net": ["ref_captions.json"],
    "EMCL": ["vatex_data.json"],
    "official": ["vatex_training_v1.0.json", "vatex_validation_v1.0.json"],
}
LISTS = {
    "train": ["train_list.txt", "trn_names.npy"],
    "val": ["val_list.txt", "val_names.npy"],
    "test": ["test_list.txt", "tst_names.npy"],
}


def vatex(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """All English captions, videos in list order; a split whose list is missing is noted."""
    files = AnnotationFiles(annotations)
    reading = Reading(VideoFiles(videos))
    lists = {split: files.find(*names) for split, names in LISTS.items()}
    if lists["test"] is None:
        looked_for = " or ".join(LISTS["test"])
        raise DatasetError(f"{annotations} holds no list of VATEX's test: looked for {looked_for}")

    layout, paths = files.choose("VATEX's captions", CAPTIONS)
    captions = read_captions(layout, paths, reading)

    for split, path in lists.items():
        if path is None:
            reading.absent(files.root / LISTS[split][0], split)
            continue
        for video, where in read_ids(path, reading).items():
            youtube_id = video.rsplit("_", 2)[0]
            reading.add(
                split,
                video,
                captions.get(video, ()),
                where,
                source=youtube_id,
            )

    file_names = ", ".join(path.name for path in paths)
    return reading.table(f"{layout} ({file_names})")


def read_captions(
    layout: str,
    paths: list[Path],
    reading: Reading,
) -> dict[str, list[str]]:
    """English captions by video."""
    if layout == "official":
        keys = {"videoID": str, "enCap": list}
        captions: dict[str, list[str]] = {}
        for path in paths:
            items = read_json(path, reading, list)
            captions.update(entries(items, keys, path, reading))
        return captions

    path = paths[0]
    content = read_json(path, reading, dict)
    if layout == "EMCL":
        # an entry that is no object has no captions, which `lists_by_video` records
        for video, entry in content.items():
            content[video] = entry.get("enCap") if isinstance(entry, dict) else None
    return lists_by_video(content, path, reading)
