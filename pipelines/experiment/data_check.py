"""What is in a data set's files: everything that is known without decoding, as a report."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from vopcore import clip
from vopcore.config import RunConfig
from vopcore.datasets import DATASETS, PUBLISHED, VideosFolder, check, layout, problems
from vopcore.shards import Layout, default_storage
from vopcore.video import VideoError, probe

Report = dict[str, Any]
SHOWN = 5  # problems, unreadable files that are printed; --json has them all


def token_counter(config: RunConfig) -> Callable[[str], int]:
    """Tokens of a caption, start and end included, before anything is cut off."""
    return clip.tokenizer(config.clip.model, config.clip.words).count


def report_on(config: RunConfig, count: Callable[[str], int], headers: int | None, listed: Path) -> Report:
    """Everything that is known without decoding, as JSON can say it. Raises DatasetError."""
    root = Path(config.data.root)
    videos = VideosFolder(config.data.videos or config.data.root, config.data.follow_links)
    table = DATASETS[config.data.dataset](root, videos)
    splits = check.rows_by_split(table)
    published = PUBLISHED.get(config.data.dataset, {})
    missing = check.missing(splits)
    report = {
        "dataset": config.data.dataset,
        "layout": layout(table),
        "videos": videos.place,
        "splits": {split: check.counts(rows, published.get(split)) for split, rows in splits.items()},
        "missing": {"videos": len(missing), "list": str(write_missing(missing, listed)) if missing else None},
        "first_missing": first_missing(missing),
        "headers": check.unreadable(splits, header_problem, headers),
        "duplicates": {split: check.duplicates(rows) for split, rows in splits.items()},
        "leakage": check.leakage(table, splits),
        "tokens": {split: check.tokens(rows, config.clip.words, count) for split, rows in splits.items()},
        "disk": disk(config, table),
        "problems": [str(problem) for problem in problems(table)],
    }
    report["max_failed"] = lost(report, config.video.max_failed)
    errors = what_forbids(report, needs_train=any(run.name != "zero_shot" for run in config.methods))
    warnings = what_is_odd(report, published)
    return report | {"usable": not errors, "errors": errors, "warnings": warnings}


def unreadable_data(config: RunConfig, error: ValueError) -> Report:
    """The report where the annotations cannot be read at all."""
    return {"dataset": config.data.dataset, "usable": False, "errors": [str(error)], "warnings": []}


def header_problem(file: str) -> str | None:
    """Why a file's header cannot be read; None: it can."""
    try:
        probe(file)
    except VideoError as error:
        return str(error)
    return None


def first_missing(missing: list[tuple[str, str]]) -> dict[str, str]:
    """A video without a file of each split that has one: shows which names were looked for."""
    first: dict[str, str] = {}
    for split, video in missing:
        first.setdefault(split, video)
    return first


def write_missing(missing: list[tuple[str, str]], listed: Path) -> Path:
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(f"{split}\t{video}\n" for split, video in missing))
    return listed


def disk(config: RunConfig, table: pa.Table) -> dict[str, Any]:
    """Bytes the shards will take at most: of the videos found, of all, and those that are free."""
    video = config.video
    storage = default_storage(video.kept, video.size) if video.storage == "auto" else video.storage
    per_video = video.kept * Layout(video.size, storage, video.quality).bytes_per_frame()
    rows = table.select(["video", "path"]).to_pylist()
    folder = next(parent for parent in Path(config.output, "shards").parents if parent.is_dir())
    return {
        "frames": video.kept,
        "storage": storage,
        "needed": len({row["video"] for row in rows if row["path"]}) * per_video,
        "needed_with_missing": len({row["video"] for row in rows}) * per_video,
        "free": shutil.disk_usage(folder).free,
    }


def lost(report: Report, allowed: float) -> dict[str, Any]:
    """Videos that ingest will count as failed, at least, and the share that `video.max_failed` allows."""
    videos = sum(found["videos"] for found in report["splits"].values())
    failed = report["missing"]["videos"] + len(report["headers"]["unreadable"])
    return {"failed": failed, "videos": videos, "allowed": allowed, "exceeded": failed > allowed * videos}


def what_forbids(report: Report, needs_train: bool) -> list[str]:
    """Why the splits cannot be used."""
    errors = []
    for split in ["train", "test"] if needs_train else ["test"]:
        if split not in report["splits"]:
            errors.append(f"no {split} split")
        elif not report["splits"][split]["files_found"]:
            num_videos = report["splits"][split]["videos"]
            errors.append(
                f"{split}: none of the {num_videos:,} videos has a file: looked below {report['videos']} for"
                f" names such as {report['first_missing'][split]!r}"
            )
    headers = report["headers"]
    if headers["checked"] and len(headers["unreadable"]) == headers["checked"]:
        errors.append(f"none of the {headers['checked']:,} files that were opened is a readable video")

    share = report["max_failed"]
    if share["exceeded"] and not errors:
        errors.append(
            f"at least {share['failed']:,} of {share['videos']:,} videos will fail, and video.max_failed"
            f" allows {share['allowed']:.2%}: run.py would stop with code 3"
        )
    return errors


def what_is_odd(report: Report, published: dict[str, tuple[int | None, int]]) -> list[str]:
    """What a user should know before quoting a number."""
    warnings = [f"no {split} split, papers have one" for split in published if split not in report["splits"]]
    for split, found in report["splits"].items():
        for what, number in (found["published"] or {}).items():
            if number not in (None, found[what]):
                warnings.append(f"{split}: {found[what]:,} {what}, papers have {number:,}")
        if found["files_missing"]:
            warnings.append(f"{split}: {found['files_missing']:,} of {found['videos']:,} videos have no file")
        if cut := report["tokens"][split]["captions_cut"]:
            lost = report["tokens"][split]
            warnings.append(
                f"{split}: {cut:,} captions ({lost['captions_cut_percent']}%) are longer than {lost['limit']}"
                f" tokens; {lost['tokens_cut']:,} tokens ({lost['tokens_cut_percent']}%) are cut off"
            )
        if (shared := report["duplicates"][split]["of_several_videos"]) and split != "train":
            warnings.append(f"{split}: {shared:,} captions stand at several videos, so R@1 cannot reach 100")
    for split, leaks in report["leakage"].items():
        for what, number in leaks.items():
            if number:
                warnings.append(f"{split}: {number:,} {what.replace('_', ' ')} also in train")
    if bad := report["headers"]["unreadable"]:
        warnings.append(
            f"{len(bad):,} of {report['headers']['checked']:,} files that were opened are unreadable"
        )
    if report["disk"]["needed"] > report["disk"]["free"]:
        warnings.append("the shards will not fit on the disk")
    if report["problems"]:
        warnings.append(f"{len(report['problems']):,} problems in the annotation files")
    return warnings


def as_text(report: Report) -> str:
    """The report for people; short."""
    lines = [f"{report['dataset']}: {report.get('layout', 'not read')}"]
    for split, found in report.get("splits", {}).items():
        lines.append(
            f"  {split:5}  {found['videos']:>7,} videos  {found['captions']:>8,} captions"
            f"  {found['files_found']:>7,} files found"
        )
    if "disk" in report:
        needed = report["disk"]
        whole, free = needed["needed_with_missing"] / 1e9, needed["free"] / 1e9
        lines.append(
            f"  shards: {needed['frames']} frames, {needed['storage']}: {needed['needed'] / 1e9:,.1f} GB"
            f" ({whole:,.1f} GB with the missing videos), {free:,.1f} GB free"
        )
        lines.append(
            f"  headers: {report['headers']['checked']:,} of {report['headers']['files']:,} files opened"
        )
    lines += [f"  error: {error}" for error in report["errors"]]
    lines += [f"  warning: {warning}" for warning in report["warnings"]]
    if report.get("missing", {}).get("list"):
        lines.append(f"  missing videos are listed in {report['missing']['list']}")
    unreadable = report.get("headers", {}).get("unreadable", [])
    lines += [f"  unreadable: {bad['file']}: {bad['reason']}" for bad in unreadable[:SHOWN]]
    lines += [f"  problem: {problem}" for problem in report.get("problems", [])[:SHOWN]]
    return "\n".join([*lines, "usable" if report["usable"] else "NOT usable"])
