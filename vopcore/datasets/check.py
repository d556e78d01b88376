"""What can be said of an annotation table before anything is decoded: counts, duplicates, leakage, tokens."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import pyarrow as pa

from vopcore.datasets.table import SPLITS, sources

Rows = list[dict[str, str | float | None]]


def rows_by_split(table: pa.Table) -> dict[str, Rows]:
    """The table's rows for each split that has any."""
    rows = defaultdict(list)
    for row in table.to_pylist():
        rows[row["split"]].append(row)
    return {split: rows[split] for split in SPLITS if split in rows}


def counts(rows: Rows, published: tuple[int | None, int] | None) -> dict[str, object]:
    """Videos, captions, their files, and the published (videos, captions) beside them."""
    num_captions = Counter(row["video"] for row in rows)
    found = {row["video"] for row in rows if row["path"]}
    return {
        "videos": len(num_captions),
        "captions": len(rows),
        "captions_per_video": [min(num_captions.values()), max(num_captions.values())],
        "files_found": len(found),
        "files_missing": len(num_captions) - len(found),
        "published": dict(zip(("videos", "captions"), published, strict=True)) if published else None,
    }


def missing(splits: Mapping[str, Rows]) -> list[tuple[str, str]]:
    """(split, video) of all videos without a file, each once, in order."""
    return list(
        dict.fromkeys((s, row["video"]) for s, rows in splits.items() for row in rows if not row["path"])
    )


def duplicates(rows: Rows) -> dict[str, int]:
    """Captions that stand twice. `of_several_videos`: captions with a twin at another video; as queries they
    cannot all be first, so R@1 stays below 100. `files_of_several_videos` is right for moments of a file.
    """
    within = len(rows) - len({(row["video"], row["caption"]) for row in rows})
    videos, files = defaultdict(set), defaultdict(set)
    for row in rows:
        videos[normal(row["caption"])].add(row["video"])
        if row["path"]:
            files[row["path"]].add(row["video"])
    shared = sum(len(videos[normal(row["caption"])]) > 1 for row in rows)
    several = sum(len(clips) > 1 for clips in files.values())
    return {"within_a_video": within, "of_several_videos": shared, "files_of_several_videos": several}


def leakage(table: pa.Table, splits: Mapping[str, Rows]) -> dict[str, dict[str, int]]:
    """What a later split shares with train: videos, files, sources (how many of its clips are cut from a
    film or longer video that train's clips are cut from too), captions (how many of its captions stand in
    train).
    """
    if "train" not in splits:
        return {}
    cut_from = sources(table)
    seen = traits(splits["train"], cut_from)
    report = {}
    for split, rows in splits.items():
        if split != "train":
            own = traits(rows, cut_from)
            clips = {row["video"] for row in rows}
            report[split] = {
                "videos": len(own["videos"] & seen["videos"]),
                "files": len(own["files"] & seen["files"]),
                "clips_of_shared_sources": sum(cut_from.get(clip) in seen["sources"] for clip in clips),
                "captions": sum(normal(row["caption"]) in seen["captions"] for row in rows),
            }
    return report


def traits(rows: Rows, cut_from: Mapping[str, str]) -> dict[str, set]:
    """What may leak, as sets: videos, files, sources, captions."""
    videos = {row["video"] for row in rows}
    return {
        "videos": videos,
        "files": {row["path"] for row in rows if row["path"]},
        "sources": {cut_from[video] for video in videos if video in cut_from},
        "captions": {normal(row["caption"]) for row in rows},
    }


def normal(caption: str) -> str:
    """What CLIP's tokenizer makes equal: case and space."""
    return " ".join(caption.lower().split())


def tokens(rows: Rows, limit: int, count: Callable[[str], int]) -> dict[str, float]:
    """How long captions are, by `count` (start and end included), and how much of them is beyond `limit`."""
    lengths = {caption: count(caption) for caption in {row["caption"] for row in rows}}
    all_lengths = [lengths[row["caption"]] for row in rows]
    cut = [length - limit for length in all_lengths if length > limit]
    return {
        "limit": limit,
        "mean": round(sum(all_lengths) / len(rows), 1),
        "longest": max(all_lengths),
        "captions_cut": len(cut),
        "captions_cut_percent": round(100 * len(cut) / len(rows), 2),
        "tokens_cut": sum(cut),
        "tokens_cut_percent": round(100 * sum(cut) / sum(all_lengths), 2),
    }


def unreadable(
    splits: Mapping[str, Rows], probe: Callable[[str], str | None], sample: int | None, seed: int = 0
) -> dict[str, object]:
    """Opens `sample` files (None: all), drawn evenly from all splits; `probe` gives what is wrong with
    one.
    """
    files = sorted({row["path"] for rows in splits.values() for row in rows if row["path"]})
    chosen = files if sample is None or sample >= len(files) else random.Random(seed).sample(files, sample)
    bad = [{"file": file, "reason": reason} for file in sorted(chosen) if (reason := probe(file)) is not None]
    return {"checked": len(chosen), "files": len(files), "unreadable": bad}
