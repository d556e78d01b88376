"""MSR-VTT (Xu et al., CVPR 2016): 10,000 clips of 10-30 s with 20 captions each, in three cuts.

`msrvtt_9k` and `msrvtt_7k` train on 9,000 / 7,010 clips and test on the 1,000 clips and sentences of
JSFusion (1kA, Yu et al., ECCV 2018); `msrvtt_full` is the official cut, with all 20 captions of a test
clip.

Files: CLIP4Clip's `msrvtt_data.zip` (MSRVTT_data.json, MSRVTT_train.9k.csv, MSRVTT_train.7k.csv,
MSRVTT_JSFUSION_test.csv; X-Pool and DGL hold the same), the official train_val_videodatainfo.json and
test_videodatainfo.json, or Frozen's MSRVTT.zip (annotation/MSR_VTT.json,
high-quality/structured-symlinks/*.txt). Videos: video0.mp4 ... video9999.mp4 (or .webm).
"""

from collections import defaultdict
from pathlib import Path

import pyarrow as pa

from vopcore.datasets.errors import DatasetError, Line
from vopcore.datasets.files import (
    AnnotationFiles,
    entries,
    read_csv,
    read_ids,
    read_json,
    read_pickle,
    unique,
)
from vopcore.datasets.match import VideoFiles, VideosFolder
from vopcore.datasets.table import Reading

# (videos, captions) per split, counted on the published files (md5 of the lists: ef90cc53 9k, 97e0244f 7k,
# 612aec57 test)
PUBLISHED_9K = {"train": (9000, 180_000), "test": (1000, 1000)}
PUBLISHED_7K = {"train": (7010, 140_200), "test": (1000, 1000)}
PUBLISHED_FULL = {"train": (6513, 130_260), "val": (497, 9940), "test": (2990, 59_800)}

CAPTIONS = {
    "CLIP4Clip": ["MSRVTT_data.json"],
    "official": ["train_val_videodatainfo.json", "test_videodatainfo.json"],
    "official, without its test file": ["train_val_videodatainfo.json"],
    "Frozen": ["MSR_VTT.json"],
}
TEST = {
    "JSFusion": ["MSRVTT_JSFUSION_test.csv"],
    "Frozen": ["val_list_jsfusion.txt", "jsfusion_val_caption_idx.pkl"],
}


def msrvtt_9k(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """Train: all clips but the 1kA test's, 180,000 pairs. Test: 1kA."""
    return with_1ka(
        annotations, videos, ["MSRVTT_train.9k.csv", "train_list_jsfusion.txt", "train_list_9k.txt"], None
    )


def msrvtt_7k(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """Train: the official train and validate clips, 140,200 pairs. Test: 1kA."""
    return with_1ka(annotations, videos, ["MSRVTT_train.7k.csv", "train_list_7k.txt"], {"train", "validate"})


def msrvtt_full(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """The official cut: 6,513 train, 497 validate, 2,990 test clips, all with 20 captions."""
    files, reading = AnnotationFiles(annotations), Reading(VideoFiles(videos))
    source = Source(files, reading)
    for split, official in [("train", "train"), ("val", "validate"), ("test", "test")]:
        path = files.find(f"MSRVTT_{split}.full.csv", f"{split}_list_full.txt")
        source.add(split, read_list(path, reading) if path else source.of_splits({official}))
    return reading.table(source.layout)


class Source:
    """Captions and official splits by video id, and the sentences that were read."""

    def __init__(self, files: AnnotationFiles, reading: Reading) -> None:
        name, paths = files.choose("MSR-VTT's captions", CAPTIONS)
        self.layout = f"{name} ({', '.join(path.name for path in paths)})"
        self.reading = reading
        self.path = paths[0]
        self.captions: dict[str, list[str]] = defaultdict(list)
        self.splits: dict[str, str] = {}  # empty for Frozen's file
        self.urls: dict[str, str] = {}  # empty for Frozen's file, and where the user's has none
        for path in paths:
            content = read_json(path, reading, dict)
            key, listed = ("image_id", "annotations") if name == "Frozen" else ("video_id", "sentences")
            for video, caption in entries(content.get(listed), {key: str, "caption": str}, path, reading):
                self.captions[video].append(caption)
            if videos := content.get("videos"):
                self.splits |= entries(videos, {"video_id": str, "split": str}, path, reading)
                with_url = [video for video in videos if isinstance(video, dict) and "url" in video]
                self.urls |= {video.get("video_id"): str(video["url"]) for video in with_url}

    def of_splits(self, official: set[str] | None) -> dict[str, Line]:
        """Ids of the official splits (None: all), in the file's order."""
        if official and not self.splits:
            raise DatasetError(f"{self.path} does not say which split a video is of: a list of ids is needed")
        if official is None:
            return dict.fromkeys(self.captions, Line(self.path))
        return {video: Line(self.path) for video, split in self.splits.items() if split in official}

    def add(self, split: str, ids: dict[str, Line]) -> None:
        for video, where in ids.items():
            self.reading.add(split, video, self.captions.get(video, ()), where, source=self.urls.get(video))


def with_1ka(
    annotations: Path, videos: str | Path | VideosFolder, lists: list[str], official: set[str] | None
) -> pa.Table:
    """Train as one of `lists` says or else the `official` splits (None: all) without 1kA, test 1kA."""
    files, reading = AnnotationFiles(annotations), Reading(VideoFiles(videos))
    source = Source(files, reading)
    name, paths = files.choose("MSR-VTT's 1kA test", TEST)
    if name == "Frozen":
        chosen = read_pickle(paths[1])
        test = {
            video: (where, pick(source, video, chosen))
            for video, where in read_ids(paths[0], reading).items()
        }
    else:
        rows = read_csv(paths[0], ["video_id", "sentence"], reading)
        places = unique(((where, row["video_id"]) for where, row in rows), reading)
        sentences = {row["video_id"]: row["sentence"] for _, row in reversed(rows)}
        test = {video: (where, [sentences[video]]) for video, where in places.items()}
    path = files.find(*lists)
    if path:
        source.add("train", read_list(path, reading))
    else:
        ids = source.of_splits(official)
        source.add("train", {video: where for video, where in ids.items() if video not in test})
    for video, (where, captions) in test.items():
        reading.add("test", video, captions, where, source=source.urls.get(video))
    train = path.name if path else "derived from the captions' file"
    return reading.table(f"captions: {source.layout}; train: {train}; test: {name} ({paths[0].name})")


def read_list(path: Path, reading: Reading) -> dict[str, Line]:
    """Ids of a list, of CLIP4Clip's csv with a header `video_id` or of Frozen's txt without."""
    if path.suffix == ".csv":
        rows = read_csv(path, ["video_id"], reading)
        return unique(((where, row["video_id"]) for where, row in rows), reading)
    return read_ids(path, reading)


def pick(source: Source, video: str, chosen: dict[str, int]) -> list[str]:
    """The one caption of a 1kA test video that Frozen's index names."""
    captions, number = source.captions.get(video, []), chosen.get(video)
    return [captions[number]] if isinstance(number, int) and 0 <= number < len(captions) else []
