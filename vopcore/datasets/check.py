"""What can be said of an annotation table before anything is decoded: counts, duplicates, leakage, tokens."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from vopcore.datasets.table import SPLITS, sources

Rows = list[dict[str, Any]]  # of an ANNOTATIONS table


def rows_by_split(table: pa.Table) -> dict[str, Rows]:
    """The table's rows for each split that has any."""
    rows = defaultdict(list)
    for row in table.to_pylist():
        rows[row["split"]].append(row)
    return {split: rows[split] for split in SPLITS if split in rows}


def counts(rows: Rows, published: tuple[int | None, int] | None) -> dict[str, object]:
    """Videos, captions, their files, and the published (videos, captions) beside them."""
    num_captions = Counter(row["video"] for row in rows)
    with_file = {row["video"] for row in rows if row["path"]}

    published_counts = None
    if published is not None:
        num_published_videos, num_published_captions = published
        published_counts = {"videos": num_published_videos, "captions": num_published_captions}

    fewest = min(num_captions.values())
    most = max(num_captions.values())
    return {
        "videos": len(num_captions),
        "captions": len(rows),
        "captions_per_video": [fewest, most],
        "files_found": len(with_file),
        "files_missing": len(num_captions) - len(with_file),
        "published": published_counts,
    }


def missing(splits: Mapping[str, Rows]) -> list[tuple[str, str]]:
    """(split, video) of all videos without a file, each once, in order."""
    videos: dict[tuple[str, str], None] = {}  # a set that keeps its order
    for split, rows in splits.items():
        for row in rows:
            if not row["path"]:
                videos[split, row["video"]] = None
    return list(videos)


def duplicates(rows: Rows) -> dict[str, int]:
    """Captions that stand twice.

    `within_a_video`: captions that the same video has already. `of_several_videos`: captions with a twin at
    another video; as queries they cannot all be first, so R@1 stays below 100. `files_of_several_videos`:
    files that several videos share, as they do where videos are moments of a file.
    """
    distinct = {(row["video"], row["caption"]) for row in rows}

    videos_of_caption = defaultdict(set)
    videos_of_file = defaultdict(set)
    for row in rows:
        videos_of_caption[normal(row["caption"])].add(row["video"])
        if row["path"]:
            videos_of_file[row["path"]].add(row["video"])

    num_shared_captions = 0
    for row in rows:
        videos = videos_of_caption[normal(row["caption"])]
        num_shared_captions += len(videos) > 1

    return {
        "within_a_video": len(rows) - len(distinct),
        "of_several_videos": num_shared_captions,
        "files_of_several_videos": sum(len(videos) > 1 for videos in videos_of_file.values()),
    }


def leakage(table: pa.Table, splits: Mapping[str, Rows]) -> dict[str, dict[str, int]]:
    """What a later split shares with train.

    `videos`, `files`: those that are in train too. `clips_of_shared_sources`: videos cut from a film or
    longer video that train's videos are cut from too. `captions`: captions that stand in train too.
    """
    if "train" not in splits:
        return {}

    cut_from = sources(table)
    of_train = traits(splits["train"], cut_from)
    report = {}
    for split, rows in splits.items():
        if split != "train":
            report[split] = shared_with_train(rows, of_train, cut_from)
    return report


def shared_with_train(
    rows: Rows,
    of_train: Mapping[str, set[str]],
    cut_from: Mapping[str, str],
) -> dict[str, int]:
    """What one split shares with the `traits` of train."""
    of_split = traits(rows, cut_from)
    num_clips = sum(cut_from.get(video) in of_train["sources"] for video in of_split["videos"])
    num_captions = sum(normal(row["caption"]) in of_train["captions"] for row in rows)
    return {
        "videos": len(of_split["videos"] & of_train["videos"]),
        "files": len(of_split["files"] & of_train["files"]),
        "clips_of_shared_sources": num_clips,
        "captions": num_captions,
    }


def traits(rows: Rows, cut_from: Mapping[str, str]) -> dict[str, set[str]]:
    """What may leak, as sets: videos, files, sources, captions."""
    videos = {row["video"] for row in rows}
    files = {row["path"] for row in rows if row["path"]}
    film_of_video = {video: cut_from[video] for video in videos if video in cut_from}
    captions = {normal(row["caption"]) for row in rows}
    return {
        "videos": videos,
        "files": files,
        "sources": set(film_of_video.values()),
        "captions": captions,
    }


def normal(caption: str) -> str:
    """A caption as CLIP's tokenizer sees it, which ignores case and the amount of space."""
    words = caption.lower().split()
    return " ".join(words)


def tokens(
    rows: Rows,
    limit: int,
    count: Callable[[str], int],
) -> dict[str, float]:
    """How long captions are, by `count` (start and end included), and how much of them is beyond `limit`."""
    # captions repeat, and counting is slow: each text once
    distinct = {row["caption"] for row in rows}
    length_of_caption = {caption: count(caption) for caption in distinct}
    lengths = [length_of_caption[row["caption"]] for row in rows]
    excess = [length - limit for length in lengths if length > limit]

    num_captions = len(rows)
    num_tokens = sum(lengths)
    num_tokens_cut = sum(excess)
    return {
        "limit": limit,
        "mean": round(num_tokens / num_captions, 1),
        "longest": max(lengths),
        "captions_cut": len(excess),
        "captions_cut_percent": round(100 * len(excess) / num_captions, 2),
        "tokens_cut": num_tokens_cut,
        "tokens_cut_percent": round(100 * num_tokens_cut / num_tokens, 2),
    }


def unreadable(
    splits: Mapping[str, Rows],
    probe: Callable[[str], str | None],
    sample: int | None,
    seed: int = 0,
) -> dict[str, object]:
    """Opens `sample` files (None: all), drawn evenly from all splits.

    `probe` says what is wrong with a file, and None of a good one.
    """
    paths: set[str] = set()
    for rows in splits.values():
        paths.update(row["path"] for row in rows if row["path"])
    files = sorted(paths)

    chosen = files
    if sample is not None and sample < len(files):
        chosen = random.Random(seed).sample(files, sample)

    bad_files = []
    for file in sorted(chosen):
        reason = probe(file)
        if reason is not None:
            bad_files.append({"file": file, "reason": reason})
    return {
        "checked": len(chosen),
        "files": len(files),
        "unreadable": bad_files,
    }
