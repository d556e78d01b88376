"""What is in a data set's files: everything that is known without decoding, gathered in a report."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from pipelines.experiment.data_report import Report, what_forbids, what_is_odd
from pipelines.ingest.task import layout_of
from vopcore import clip
from vopcore.config import RunConfig
from vopcore.datasets import PUBLISHED, check, layout, problems
from vopcore.storage import open_uri, with_retries, working_folder
from vopcore.video import VideoError, probe


def report_on(
    config: RunConfig,
    table: pa.Table,
    headers: int | None,
    listed: Path,
) -> Report:
    """Everything that is known without decoding, as JSON can say it.

    table: the annotations of `config`. headers: how many files to open (None: all). listed: the file that
    missing videos are written to.
    """
    dataset = config.data.dataset
    splits = check.by_split(table)
    published = PUBLISHED.get(dataset, {})
    count = token_counter(config)

    counts = {}
    duplicates = {}
    tokens = {}
    for split, rows in splits.items():
        counts[split] = check.counts(rows, published.get(split))
        duplicates[split] = check.duplicates(rows)
        tokens[split] = check.tokens(rows, config.clip.context, count)

    missing = check.missing(splits)
    missing_list = None
    if missing:
        write_missing(missing, listed)
        missing_list = str(listed)

    # it was listed a moment ago, so that it opens
    place = config.data.videos_place
    filesystem, _ = open_uri(place)
    reason = partial(header_problem, filesystem)

    report: Report = {
        "dataset": dataset,
        "layout": layout(table),
        "videos": place,
        "splits": counts,
        "missing": {"videos": len(missing), "list": missing_list},
        "first_missing": first_missing(missing),
        "headers": check.unreadable(splits, reason, headers),
        "duplicates": duplicates,
        "leakage": check.leakage(table, splits),
        "tokens": tokens,
        "disk": disk(config, table),
        "problems": [str(problem) for problem in problems(table)],
    }
    report["max_failed"] = failed_share(report, config)

    # what is not trained needs no train split
    needs_train = any(run.name != "zero_shot" for run in config.methods)
    errors = what_forbids(report, needs_train)
    report["usable"] = not errors
    report["errors"] = errors
    report["warnings"] = what_is_odd(report, published)
    return report


def token_counter(config: RunConfig) -> Callable[[str], int]:
    """Tokens of a caption, start and end included, before anything is cut off."""
    tokenizer = clip.tokenizer(config.clip.model, config.clip.context)
    return tokenizer.count


def header_problem(filesystem: fs.FileSystem, file: str) -> str | None:
    """Why the header of a file cannot be read; None: it can.

    Of a file in an object store only the pieces that hold the header cross the network.
    """
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            probe(file)
        else:
            with with_retries(lambda: filesystem.open_input_file(file), f"the bucket of {file}") as remote:
                probe(remote)
    except (VideoError, OSError) as error:
        return str(error)
    return None


def first_missing(missing: list[tuple[str, str]]) -> dict[str, str]:
    """A video without a file of each split that has one: shows which names were looked for."""
    first: dict[str, str] = {}
    for split, video in missing:
        first.setdefault(split, video)
    return first


def write_missing(missing: list[tuple[str, str]], listed: Path) -> None:
    """Write a line `split<tab>video` for each missing video."""
    lines = [f"{split}\t{video}\n" for split, video in missing]
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(lines))


def disk(config: RunConfig, table: pa.Table) -> dict[str, Any]:
    """Bytes the shards will take at most: of the videos found, of all, and those that are free."""
    video = config.video
    layouts = [layout_of(video, size) for size in video.sizes]
    storages = [stored.storage for stored in layouts]

    # a frame is stored once in each size
    bytes_per_frame = sum(stored.bytes_per_frame() for stored in layouts)
    bytes_per_video = video.kept * bytes_per_frame

    all_videos = table.column("video")
    videos_with_file = check.with_file(table).column("video")
    num_videos = pc.count_distinct(all_videos).as_py()
    num_with_file = pc.count_distinct(videos_with_file).as_py()

    # the output's folder may not be there yet, but some parent of it is
    shards = working_folder(config.output) / "shards"
    folder = next(parent for parent in shards.parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    return {
        "frames": video.kept,
        "storage": " and ".join(storages),
        "needed": num_with_file * bytes_per_video,
        "needed_with_missing": num_videos * bytes_per_video,
        "free": free,
    }


def failed_share(report: Report, config: RunConfig) -> dict[str, Any]:
    """Videos that ingest will count as failed, at least, and the share that `video.max_failed` allows."""
    num_videos = sum(counts["videos"] for counts in report["splits"].values())
    num_failed = len(report["headers"]["unreadable"])
    num_missing = report["missing"]["videos"]

    # where they are allowed to be missing, ingest does not count them at all
    if config.data.missing == "allow":
        num_videos -= num_missing
    else:
        num_failed += num_missing

    allowed = config.video.max_failed
    return {
        "failed": num_failed,
        "videos": num_videos,
        "allowed": allowed,
        "exceeded": num_failed > allowed * num_videos,
    }
