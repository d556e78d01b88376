"""A few lines of each format the seven benchmarks come in, and how the tests write and read them."""

import json
import pickle

import numpy as np

from vopcore.datasets import ANNOTATIONS, DATASETS, SPLITS

JSFUSION = "key,vid_key,video_id,sentence\nret0,msr3,video3,a cat sits\nret1,msr4,video4,a dog runs\n"
CAPTIONS = {f"video{number}": [f"{number} a", f"{number} b"] for number in range(5)}
SENTENCES = [{"video_id": v, "caption": c, "sen_id": 0} for v, listed in CAPTIONS.items() for c in listed]
OFFICIAL = dict.fromkeys(["video0", "video1"], "train") | {
    "video2": "validate",
    "video3": "test",
    "video4": "test",
}
VIDEOS = [
    {"video_id": video, "split": split, "start time": 1.0, "url": f"u{video[-1]}"}
    for video, split in OFFICIAL.items()
]
LISTS = {"train_list.txt": "a_1_2\nb_3_4", "val_list.txt": "c_5_6\n\n", "test_list.txt": "-d_7_8\r\n"}
MSVD = {"a_1_2": ["one", "two"], "b_3_4": ["three"], "c_5_6": ["four"], "-d_7_8": ["five", "six"]}
CLIP = "3086_UGLY_TRUTH_00.23.23.000-00.23.28.886"
TIMES = "00.23.23.000\t00.23.28.886\t00.23.23.000\t00.23.28.886"
PARAGRAPHS = {
    "v_one": {
        "duration": 82.73,
        "timestamps": [[0, 1], [1, 2]],
        "sentences": ["A woman stands.", " She dances."],
    },
    "v_two": {"duration": 10, "timestamps": [[0, 1]], "sentences": ["A man."]},
}
VAL_1 = {"v_three": {"duration": 5.0, "timestamps": [[0, 1]], "sentences": ["A dog."]}}
MOV, DOT = "35034348999@N01_6060447507_dc1a90b8ef.mov", "10052357@N03_7585070382_5762149bfc."
DESCRIPTIONS = [
    {"video": MOV, "description": "the man bends", "times": [[1, 1]], "annotation_id": 1},
    {"video": DOT, "description": "a bug", "times": [[0, 0]], "annotation_id": 2},
    {"video": MOV, "description": "he stands up", "times": [[2, 2]], "annotation_id": 3},
    {"video": "1@N00_9_not_listed.avi", "description": "left out", "times": [[2, 2]], "annotation_id": 4},
]
VATEX_IDS = [f"{name}_000001_000011" for name in ("x", "y", "z")]
VATEX = {video: [f"{video} {number}" for number in range(10)] for video in VATEX_IDS}
VATEX_LISTS = {f"{split}_list.txt": f"{video}\n" for split, video in zip(SPLITS, VATEX_IDS, strict=True)}


def write(folder, files):
    """Files by path: text as it is, bytes as they are, everything else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))


def read(dataset, tmp_path, files, videos=()):
    annotations, folder = tmp_path / "annotations", tmp_path / "videos"
    folder.mkdir(parents=True)
    annotations.mkdir()
    write(annotations, files)
    write(folder, dict.fromkeys(videos, ""))
    table = DATASETS[dataset](annotations, folder)
    assert table.schema.equals(ANNOTATIONS)
    return table


def captions_of(table, split):
    """{video: captions} in the table's order."""
    found = {}
    for row in table.to_pylist():
        if row["split"] == split:
            found.setdefault(row["video"], []).append(row["caption"])
    return found


def files_of(table, tmp_path):
    """{video: path below the videos' folder}."""
    rows = table.to_pylist()
    root = f"{tmp_path / 'videos'}/"
    return {row["video"]: row["path"] and row["path"].removeprefix(root) for row in rows}


def csv_of(*ids):
    return "video_id\n" + "".join(f"{video}\n" for video in ids)


def save(tmp_path, names):
    np.save(tmp_path / "names.npy", np.array(names))
    return (tmp_path / "names.npy").read_bytes()


CLIP4CLIP = {
    "MSRVTT_data.json": {"videos": VIDEOS, "sentences": SENTENCES},
    "MSRVTT_JSFUSION_test.csv": JSFUSION,
}
OFFICIAL_MSRVTT = {
    "train_val_videodatainfo.json": {"videos": VIDEOS[:3], "sentences": SENTENCES[:6]},
    "test_videodatainfo.json": {"videos": VIDEOS[3:], "sentences": SENTENCES[6:]},
    "MSRVTT_JSFUSION_test.csv": JSFUSION,
}
FROZEN_MSRVTT = {
    "annotation/MSR_VTT.json": {
        "annotations": [{"image_id": s["video_id"], "caption": s["caption"]} for s in SENTENCES]
    },
    "high-quality/structured-symlinks/train_list_jsfusion.txt": "video1\nvideo0\nvideo2\n",
    "high-quality/structured-symlinks/val_list_jsfusion.txt": "video3\nvideo4\n",
    "high-quality/structured-symlinks/jsfusion_val_caption_idx.pkl": pickle.dumps({"video3": 1, "video4": 0}),
}
ONE_KA = {"video3": ["a cat sits"], "video4": ["a dog runs"]}
