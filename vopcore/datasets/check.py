"""What can be said of an annotation table before anything is decoded: counts, duplicates, leakage, tokens.

A million captions are looked at by column: as Python objects they would take minutes and gigabytes.
"""

import random
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from vopcore.datasets.table import CHUNK, SPLITS, sources

COUNTED = 100_000  # captions of a split whose tokens are counted, at 30 us each


def by_split(table: pa.Table) -> dict[str, pa.Table]:
    """The rows of each split that has any, with a column `normal`: the captions as `normal` makes them."""
    captions = table.column("caption")

    # piece by piece: a million captions at once would be gigabytes of Python's objects
    pieces = []
    for start in range(0, len(captions), CHUNK):
        texts = captions.slice(start, CHUNK).to_pylist()
        normal_texts = [normal(text) for text in texts]
        pieces.append(pa.array(normal_texts, pa.string()))
    normal_captions = pa.chunked_array(pieces, pa.string())
    table = table.append_column("normal", normal_captions)

    splits = {}
    split_of_row = table.column("split")
    for split in SPLITS:
        is_in_split = pc.equal(split_of_row, split)
        rows = table.filter(is_in_split)
        if len(rows):
            splits[split] = rows
    return splits


def counts(
    rows: pa.Table,
    published: tuple[int | None, int] | None,
) -> dict[str, object]:
    """Videos, captions, their files, and the published (videos, captions) beside them."""
    captions_of_video = rows.group_by("video").aggregate([([], "count_all")])
    num_captions = captions_of_video.column("count_all")
    num_videos = len(num_captions)

    videos_with_file = with_file(rows).column("video")
    num_with_file = pc.count_distinct(videos_with_file).as_py()

    published_counts = None
    if published is not None:
        num_published_videos, num_published_captions = published
        published_counts = {
            "videos": num_published_videos,
            "captions": num_published_captions,
        }

    extremes = pc.min_max(num_captions).as_py()
    return {
        "videos": num_videos,
        "captions": len(rows),
        "captions_per_video": [extremes["min"], extremes["max"]],
        "files_found": num_with_file,
        "files_missing": num_videos - num_with_file,
        "published": published_counts,
    }


def with_file(rows: pa.Table) -> pa.Table:
    """The rows whose video has a file."""
    return rows.filter(pc.is_valid(rows.column("path")))


def missing(splits: Mapping[str, pa.Table]) -> list[tuple[str, str]]:
    """(split, video) of all videos without a file, each once, in order."""
    missing_videos = []
    for split, rows in splits.items():
        has_no_file = pc.is_null(rows.column("path"))
        videos = rows.filter(has_no_file).column("video")
        for video in videos.unique().to_pylist():
            missing_videos.append((split, video))
    return missing_videos


def duplicates(rows: pa.Table) -> dict[str, int]:
    """Captions that stand twice.

    `within_a_video`: captions that the same video has already. `of_several_videos`: captions with a twin at
    another video; as queries they cannot all be first, so R@1 stays below 100. `files_of_several_videos`:
    files that several videos share, as they do where videos are moments of a file.
    """
    distinct = rows.group_by(["video", "caption"]).aggregate([])
    num_distinct = len(distinct)

    # captions are the same query if CLIP's tokenizer cannot tell them apart
    num_videos = ("video", "count_distinct")
    num_rows: tuple[list[str], str] = ([], "count_all")
    captions = rows.group_by("normal").aggregate([num_videos, num_rows])
    is_shared = pc.greater(captions.column("video_count_distinct"), 1)
    shared_captions = captions.filter(is_shared)
    num_shared_captions = pc.sum(shared_captions.column("count_all")).as_py() or 0

    files = with_file(rows).group_by("path").aggregate([num_videos])
    is_shared_file = pc.greater(files.column("video_count_distinct"), 1)
    num_shared_files = num_true(is_shared_file)
    return {
        "within_a_video": len(rows) - num_distinct,
        "of_several_videos": num_shared_captions,
        "files_of_several_videos": num_shared_files,
    }


def leakage(
    table: pa.Table,
    splits: Mapping[str, pa.Table],
) -> dict[str, dict[str, int]]:
    """What a later split shares with train.

    `videos`, `files`: those that are in train too. `clips_of_shared_sources`: videos cut from a film or
    longer video that train's videos are cut from too. `captions`: captions that stand in train too.
    """
    if "train" not in splits:
        return {}

    cut_from = sources(table)
    videos = pa.array(cut_from.keys(), pa.string())
    films = pa.array(cut_from.values(), pa.string())
    train = splits["train"]
    train_captions = train.column("normal").unique()

    report = {}
    for split, rows in splits.items():
        if split == "train":
            continue
        is_in_train = pc.is_in(rows.column("normal"), train_captions)
        report[split] = {
            "videos": num_shared(rows, train, "video"),
            "files": num_shared(rows, train, "path"),
            "clips_of_shared_sources": num_of_shared_films(rows, train, videos, films),
            "captions": num_true(is_in_train),
        }
    return report


def num_shared(
    rows: pa.Table,
    train: pa.Table,
    column: str,
) -> int:
    """How many values of a column stand in train too, each counted once."""
    values = rows.column(column).unique().drop_null()
    train_values = train.column(column).unique()
    is_in_train = pc.is_in(values, train_values)
    return num_true(is_in_train)


def num_of_shared_films(
    rows: pa.Table,
    train: pa.Table,
    videos: pa.Array,
    films: pa.Array,
) -> int:
    """Videos of a split cut from a film that train's are cut from too; `films` String[N], what `videos`
    String[N] were cut from.
    """
    train_videos = train.column("video").unique()
    split_videos = rows.column("video").unique()
    films_of_train = films.filter(pc.is_in(videos, train_videos))
    films_of_split = films.filter(pc.is_in(videos, split_videos))

    # one entry for each video of the split, so this counts videos and not films
    is_of_train = pc.is_in(films_of_split, films_of_train)
    return num_true(is_of_train)


def num_true(mask: pa.Array | pa.ChunkedArray) -> int:
    """How many of a mask are true; 0 of an empty one."""
    return pc.sum(mask).as_py() or 0


def normal(caption: str) -> str:
    """A caption as CLIP's tokenizer sees it, which ignores case and the amount of space."""
    words = caption.lower().split()
    return " ".join(words)


def tokens(
    rows: pa.Table,
    limit: int,
    count: Callable[[str], int],
    most: int = COUNTED,
    seed: int = 0,
) -> dict[str, float]:
    """How long captions are, by `count` (start and end included), and how much of them is beyond `limit`.

    Of more than `most` captions so many are drawn; `captions_counted` says on how many the numbers stand.
    """
    captions = rows.column("caption")
    if len(captions) > most:
        every_row = range(len(captions))
        drawn = random.Random(seed).sample(every_row, most)
        captions = captions.take(pa.array(sorted(drawn)))

    # captions repeat, and counting is slow: each text once
    distinct = pc.value_counts(captions)
    texts = distinct.field("values").to_pylist()
    lengths = pa.array([count(text) for text in texts], pa.int64())
    times = distinct.field("counts")

    beyond_limit = pc.subtract(lengths, limit)
    excess = pc.max_element_wise(beyond_limit, 0)
    times_of_cut = times.filter(pc.greater(excess, 0))

    num_captions = len(captions)
    num_tokens = pc.sum(pc.multiply(lengths, times)).as_py()
    num_tokens_cut = pc.sum(pc.multiply(excess, times)).as_py()
    num_cut = pc.sum(times_of_cut).as_py() or 0
    return {
        "limit": limit,
        "captions_counted": num_captions,
        "mean": round(num_tokens / num_captions, 1),
        "longest": pc.max(lengths).as_py(),
        "captions_cut": num_cut,
        "captions_cut_percent": round(100 * num_cut / num_captions, 2),
        "tokens_cut": num_tokens_cut,
        "tokens_cut_percent": round(100 * num_tokens_cut / num_tokens, 2),
    }


def unreadable(
    splits: Mapping[str, pa.Table],
    probe: Callable[[str], str | None],
    sample: int | None,
    seed: int = 0,
) -> dict[str, object]:
    """Opens `sample` files (None: all), drawn evenly from all splits.

    `probe` says what is wrong with a file, and None of a good one.
    """
    paths_of_splits = [rows.column("path").unique() for rows in splits.values()]
    paths = pa.chunked_array(paths_of_splits, pa.string())

    # sorted, so that the same files are drawn whatever the order of the annotations
    files = paths.unique().drop_null()
    order = pc.array_sort_indices(files)
    files = files.take(order)

    chosen = files
    if sample is not None and sample < len(files):
        every_file = range(len(files))
        drawn = random.Random(seed).sample(every_file, sample)
        chosen = files.take(pa.array(sorted(drawn), pa.int64()))

    bad_files = []
    for file in chosen.to_pylist():
        reason = probe(file)
        if reason is not None:
            bad_files.append({"file": file, "reason": reason})
    return {
        "checked": len(chosen),
        "files": len(files),
        "unreadable": bad_files,
    }
