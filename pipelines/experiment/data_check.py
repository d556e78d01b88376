"""What is in a data set's files: everything that is known without decoding, as a report."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from pipelines.experiment.kept_output import working_folder
from pipelines.ingest.task import layout_of
from vopcore import clip
from vopcore.config import RunConfig
from vopcore.datasets import DATASETS, PUBLISHED, VideosFolder, check, layout, problems
from vopcore.storage import open_uri, with_retries
from vopcore.video import VideoError, probe

Report = dict[str, Any]
SHOWN = 5  # problems, unreadable files that are printed; --json has them all


def token_counter(config: RunConfig) -> Callable[[str], int]:
    """Tokens of a caption, start and end included, before anything is cut off."""
    return clip.tokenizer(config.clip.model, config.clip.context).count


def report_on(config: RunConfig, count: Callable[[str], int], headers: int | None, listed: Path) -> Report:
    """Everything that is known without decoding, as JSON can say it. Raises DatasetError.

    count: the tokens of a caption. headers: how many files to open (None: all). listed: the file that missing
    videos are written to.
    """
    dataset = config.data.dataset
    videos = VideosFolder(config.data.videos or config.data.root, config.data.follow_links)
    table = DATASETS[dataset](Path(config.data.root), videos)
    splits = check.by_split(table)
    published = PUBLISHED.get(dataset, {})

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
    filesystem, _ = open_uri(videos.place)
    report: Report = {
        "dataset": dataset,
        "layout": layout(table),
        "videos": videos.place,
        "splits": counts,
        "missing": {"videos": len(missing), "list": missing_list},
        "first_missing": first_missing(missing),
        "headers": check.unreadable(splits, partial(header_problem, filesystem), headers),
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


def unreadable_data(config: RunConfig, error: ValueError) -> Report:
    """The report where the annotations cannot be read at all."""
    return {"dataset": config.data.dataset, "usable": False, "errors": [str(error)], "warnings": []}


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
    bytes_per_frame = sum(stored.bytes_per_frame() for stored in layouts)
    bytes_per_video = video.kept * bytes_per_frame

    num_videos = pc.count_distinct(table.column("video")).as_py()
    num_with_file = pc.count_distinct(check.with_file(table).column("video")).as_py()

    # the output's folder may not be there yet, but some parent of it is
    shards = working_folder(config.output) / "shards"
    folder = next(parent for parent in shards.parents if parent.is_dir())
    return {
        "frames": video.kept,
        "storage": " and ".join(stored.storage for stored in layouts),
        "needed": num_with_file * bytes_per_video,
        "needed_with_missing": num_videos * bytes_per_video,
        "free": shutil.disk_usage(folder).free,
    }


def failed_share(report: Report, config: RunConfig) -> dict[str, Any]:
    """Videos that ingest will count as failed, at least, and the share that `video.max_failed` allows."""
    num_videos = sum(counts["videos"] for counts in report["splits"].values())
    num_failed = len(report["headers"]["unreadable"])
    num_missing = report["missing"]["videos"]
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


def what_forbids(report: Report, needs_train: bool) -> list[str]:
    """Why the splits cannot be used."""
    errors = []
    needed_splits = ["train", "test"] if needs_train else ["test"]
    for split in needed_splits:
        counts = report["splits"].get(split)
        if counts is None:
            errors.append(f"no {split} split")
        elif not counts["files_found"]:
            example = report["first_missing"][split]
            errors.append(
                f"{split}: none of the {counts['videos']:,} videos has a file: looked below"
                f" {report['videos']} for names such as {example!r}"
            )

    num_opened = report["headers"]["checked"]
    num_unreadable = len(report["headers"]["unreadable"])
    if num_opened and num_unreadable == num_opened:
        errors.append(f"none of the {num_opened:,} files that were opened is a readable video")

    # where something is wrong with all videos, their share is no news
    share = report["max_failed"]
    if share["exceeded"] and not errors:
        errors.append(
            f"at least {share['failed']:,} of {share['videos']:,} videos will fail, and video.max_failed"
            f" allows {share['allowed']:.2%}: run.py would stop with code 3"
        )
    return errors


def what_is_odd(report: Report, published: Mapping[str, tuple[int | None, int]]) -> list[str]:
    """What a user should know before quoting a number."""
    warnings = []
    for split in published:
        if split not in report["splits"]:
            warnings.append(f"no {split} split, papers have one")

    for split in report["splits"]:
        warnings += odd_counts(split, report)
        warnings += odd_captions(split, report)

    for split, leaks in report["leakage"].items():
        for key, number in leaks.items():
            if number:
                what = key.replace("_", " ")
                warnings.append(f"{split}: {number:,} {what} also in train")

    headers = report["headers"]
    num_unreadable = len(headers["unreadable"])
    if num_unreadable:
        warnings.append(f"{num_unreadable:,} of {headers['checked']:,} files that were opened are unreadable")

    if report["disk"]["needed"] > report["disk"]["free"]:
        warnings.append("the shards will not fit on the disk")

    num_problems = len(report["problems"])
    if num_problems:
        warnings.append(f"{num_problems:,} problems in the annotation files")
    return warnings


def odd_counts(split: str, report: Report) -> list[str]:
    """Where a split has other numbers than papers, and how many of its videos have no file."""
    warnings = []
    counts = report["splits"][split]
    published = counts["published"] or {}
    for what, number in published.items():
        if number is not None and number != counts[what]:
            warnings.append(f"{split}: {counts[what]:,} {what}, papers have {number:,}")

    num_missing = counts["files_missing"]
    if num_missing:
        warnings.append(f"{split}: {num_missing:,} of {counts['videos']:,} videos have no file")
    return warnings


def odd_captions(split: str, report: Report) -> list[str]:
    """Captions of a split that are too long, and queries that have several right answers."""
    warnings = []
    tokens = report["tokens"][split]
    if tokens["captions_cut"]:
        drawn = ""
        if tokens["captions_counted"] < report["splits"][split]["captions"]:
            drawn = f" of {tokens['captions_counted']:,} drawn"
        warnings.append(
            f"{split}: {tokens['captions_cut']:,} captions{drawn} ({tokens['captions_cut_percent']}%) are"
            f" longer than {tokens['limit']} tokens; {tokens['tokens_cut']:,} tokens"
            f" ({tokens['tokens_cut_percent']}%) are cut off"
        )

    # captions of train are no queries
    num_shared = report["duplicates"][split]["of_several_videos"]
    if num_shared and split != "train":
        warnings.append(f"{split}: {num_shared:,} captions stand at several videos, so R@1 cannot reach 100")
    return warnings


def as_text(report: Report) -> str:
    """The report for people; short. It also takes a report of `unreadable_data`, which holds errors alone."""
    lines = [f"{report['dataset']}: {report.get('layout', 'not read')}"]
    for split, counts in report.get("splits", {}).items():
        lines.append(
            f"  {split:5}  {counts['videos']:>7,} videos  {counts['captions']:>8,} captions"
            f"  {counts['files_found']:>7,} files found"
        )
    if "disk" in report:
        lines.append(disk_line(report["disk"]))
    if "headers" in report:
        headers = report["headers"]
        lines.append(f"  headers: {headers['checked']:,} of {headers['files']:,} files opened")

    lines += [f"  error: {error}" for error in report["errors"]]
    lines += [f"  warning: {warning}" for warning in report["warnings"]]

    missing_list = report.get("missing", {}).get("list")
    if missing_list:
        lines.append(f"  missing videos are listed in {missing_list}")
    unreadable = report.get("headers", {}).get("unreadable", [])
    lines += [f"  unreadable: {bad['file']}: {bad['reason']}" for bad in unreadable[:SHOWN]]
    lines += [f"  problem: {problem}" for problem in report.get("problems", [])[:SHOWN]]

    lines.append("usable" if report["usable"] else "NOT usable")
    return "\n".join(lines)


def disk_line(disk: dict[str, Any]) -> str:
    """What the shards will take, in GB (10^9 bytes)."""
    needed = disk["needed"] / 1e9
    needed_with_missing = disk["needed_with_missing"] / 1e9
    free = disk["free"] / 1e9
    return (
        f"  shards: {disk['frames']} frames, {disk['storage']}: {needed:,.1f} GB"
        f" ({needed_with_missing:,.1f} GB with the missing videos), {free:,.1f} GB free"
    )
