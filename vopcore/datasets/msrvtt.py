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
from typing import NamedTuple

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
PUBLISHED_FULL = {
    "train": (6513, 130_260),
    "val": (497, 9940),
    "test": (2990, 59_800),
}

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


LISTS_9K = ["MSRVTT_train.9k.csv", "train_list_jsfusion.txt", "train_list_9k.txt"]
LISTS_7K = ["MSRVTT_train.7k.csv", "train_list_7k.txt"]
OFFICIAL_SPLITS = {
    "train": "train",
    "val": "validate",
    "test": "test",
}  # ours -> as the files say it


def msrvtt_9k(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """Train: all clips but the 1kA test's, 180,000 pairs. Test: 1kA."""
    return with_1ka(annotations, videos, LISTS_9K, official=None)


def msrvtt_7k(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """Train: the official train and validate clips, 140,200 pairs. Test: 1kA."""
    return with_1ka(annotations, videos, LISTS_7K, official={"train", "validate"})


def msrvtt_full(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """The official cut: 6,513 train, 497 validate, 2,990 test clips, all with 20 captions."""
    files = AnnotationFiles(annotations)
    reading = Reading(VideoFiles(videos))
    captions = MsrvttCaptions(files, reading)
    for split, official in OFFICIAL_SPLITS.items():
        path = files.find(f"MSRVTT_{split}.full.csv", f"{split}_list_full.txt")
        ids = read_list(path, reading) if path else captions.ids_of_splits({official})
        captions.add_to(reading, split, ids)
    return reading.table(captions.layout)


class MsrvttCaptions:
    """What the captions' files say: captions, official splits and URLs by video id.

    layout: which files they are. splits: empty for Frozen's file. urls: empty for Frozen's file, and where
    the user's has none.
    """

    def __init__(self, files: AnnotationFiles, reading: Reading) -> None:
        name, paths = files.choose("MSR-VTT's captions", CAPTIONS)
        file_names = ", ".join(path.name for path in paths)
        self.layout = f"{name} ({file_names})"
        self.path = paths[0]
        self.captions: dict[str, list[str]] = defaultdict(list)
        self.splits: dict[str, str] = {}
        self.urls: dict[str, str] = {}
        for path in paths:
            content = read_json(path, reading, dict)
            if name == "Frozen":
                self._read_captions(
                    content.get("annotations"),
                    "image_id",
                    path,
                    reading,
                )
            else:
                self._read_captions(content.get("sentences"), "video_id", path, reading)
            self._read_videos(content.get("videos"), path, reading)

    def _read_captions(
        self,
        items: object,
        id_key: str,
        path: Path,
        reading: Reading,
    ) -> None:
        for video, caption in entries(
            items,
            {id_key: str, "caption": str},
            path,
            reading,
        ):
            self.captions[video].append(caption)

    def _read_videos(
        self,
        items: object,
        path: Path,
        reading: Reading,
    ) -> None:
        if not items:
            return
        self.splits.update(
            entries(
                items,
                {"video_id": str, "split": str},
                path,
                reading,
            )
        )
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and "url" in item:
                self.urls[str(item.get("video_id"))] = str(item["url"])

    def ids_of_splits(self, official: set[str] | None) -> dict[str, Line]:
        """Ids of the official splits (None: all), in the file's order."""
        where = Line(self.path)
        if official is None:
            return dict.fromkeys(self.captions, where)
        if not self.splits:
            raise DatasetError(f"{self.path} does not say which split a video is of: a list of ids is needed")
        return {video: where for video, split in self.splits.items() if split in official}

    def add_to(
        self,
        reading: Reading,
        split: str,
        ids: dict[str, Line],
    ) -> None:
        """Adds the videos `ids` with all their captions."""
        for video, where in ids.items():
            reading.add(
                split,
                video,
                self.captions.get(video, ()),
                where,
                source=self.urls.get(video),
            )


class JsfusionVideo(NamedTuple):
    """A video of the 1kA test: where it is listed, and its one caption ([] if that is missing)."""

    where: Line
    captions: list[str]


def with_1ka(
    annotations: Path,
    videos: str | Path | VideosFolder,
    lists: list[str],
    official: set[str] | None,
) -> pa.Table:
    """Test is 1kA. Train is what one of the files `lists` names, or else the `official` splits (None: all)
    without 1kA.
    """
    files = AnnotationFiles(annotations)
    reading = Reading(VideoFiles(videos))
    captions = MsrvttCaptions(files, reading)

    name, paths = files.choose("MSR-VTT's 1kA test", TEST)
    if name == "Frozen":
        test = frozen_test(paths[0], paths[1], captions, reading)
    else:
        test = jsfusion_test(paths[0], reading)

    train_list = files.find(*lists)
    if train_list:
        train = train_list.name
        ids = read_list(train_list, reading)
    else:
        train = "derived from the captions' file"
        all_ids = captions.ids_of_splits(official)
        ids = {video: where for video, where in all_ids.items() if video not in test}
    captions.add_to(reading, "train", ids)

    for video, entry in test.items():
        reading.add(
            "test",
            video,
            entry.captions,
            entry.where,
            source=captions.urls.get(video),
        )
    return reading.table(f"captions: {captions.layout}; train: {train}; test: {name} ({paths[0].name})")


def jsfusion_test(path: Path, reading: Reading) -> dict[str, JsfusionVideo]:
    """The 1kA test by video, from CLIP4Clip's csv."""
    rows = read_csv(path, ["video_id", "sentence"], reading)
    test: dict[str, JsfusionVideo] = {}
    for video, where in unique_ids(rows, reading).items():
        test[video] = JsfusionVideo(where, [])

    # of a video that is listed twice the first sentence counts
    for _, row in rows:
        sentences = test[row["video_id"]].captions
        if not sentences:
            sentences.append(row["sentence"])
    return test


def frozen_test(
    list_path: Path,
    index_path: Path,
    captions: MsrvttCaptions,
    reading: Reading,
) -> dict[str, JsfusionVideo]:
    """The 1kA test by video, from Frozen's list and its index, which says which of 20 captions is meant."""
    caption_numbers = read_pickle(index_path)
    test = {}
    for video, where in read_ids(list_path, reading).items():
        of_video = captions.captions.get(video, [])
        number = caption_numbers.get(video)
        has_caption = isinstance(number, int) and 0 <= number < len(of_video)
        test[video] = JsfusionVideo(where, [of_video[number]] if has_caption else [])
    return test


def read_list(path: Path, reading: Reading) -> dict[str, Line]:
    """Ids of a list, of CLIP4Clip's csv with a header `video_id` or of Frozen's txt without."""
    if path.suffix == ".csv":
        return unique_ids(read_csv(path, ["video_id"], reading), reading)
    return read_ids(path, reading)


def unique_ids(
    rows: list[tuple[Line, dict[str, str]]],
    reading: Reading,
) -> dict[str, Line]:
    """The column `video_id` of a csv."""
    listed = [(where, row["video_id"]) for where, row in rows]
    return unique(listed, reading)
