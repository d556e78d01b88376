"""What a data check has found: what forbids to use the data, what is odd, and all of it as text."""

from collections.abc import Mapping
from typing import Any

from vopcore.config import RunConfig

Report = dict[str, Any]

# Problems, and unreadable files, that are printed; --json has them all.
SHOWN = 5


def unreadable_data(config: RunConfig, error: ValueError) -> Report:
    """The report where the annotations cannot be read at all."""
    return {
        "dataset": config.data.dataset,
        "usable": False,
        "errors": [str(error)],
        "warnings": [],
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


def what_is_odd(
    report: Report,
    published: Mapping[str, tuple[int | None, int]],
) -> list[str]:
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

    needed = report["disk"]["needed"]
    if needed > report["disk"]["free"]:
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
        # of some splits only one of the two numbers is published
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
    num_captions = report["splits"][split]["captions"]
    if tokens["captions_cut"]:
        drawn = ""
        if tokens["captions_counted"] < num_captions:
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

    headers = report.get("headers", {})
    if "disk" in report:
        lines.append(disk_line(report["disk"]))
    if headers:
        lines.append(f"  headers: {headers['checked']:,} of {headers['files']:,} files opened")

    for error in report["errors"]:
        lines.append(f"  error: {error}")
    for warning in report["warnings"]:
        lines.append(f"  warning: {warning}")

    missing_list = report.get("missing", {}).get("list")
    if missing_list:
        lines.append(f"  missing videos are listed in {missing_list}")
    for bad in headers.get("unreadable", [])[:SHOWN]:
        lines.append(f"  unreadable: {bad['file']}: {bad['reason']}")
    for problem in report.get("problems", [])[:SHOWN]:
        lines.append(f"  problem: {problem}")

    lines.append("usable" if report["usable"] else "NOT usable")
    return "\n".join(lines)


def disk_line(disk: Mapping[str, Any]) -> str:
    """What the shards will take, in GB (10^9 bytes)."""
    needed = disk["needed"] / 1e9
    needed_with_missing = disk["needed_with_missing"] / 1e9
    free = disk["free"] / 1e9
    return (
        f"  shards: {disk['frames']} frames, {disk['storage']}: {needed:,.1f} GB"
        f" ({needed_with_missing:,.1f} GB with the missing videos), {free:,.1f} GB free"
    )
