"""The annotations of a config: read, summed up in a line, and refused where nothing could come of them."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vopcore.config import ConfigError, RunConfig, is_trained
from vopcore.config.sections import Data
from vopcore.datasets import DATASETS, SPLITS, VideosFolder, layout, problems

MOST_PROBLEMS = 5  # printed one by one; the others are counted


def annotations(config: RunConfig) -> pa.Table:
    """Read the data set, say what is in it, and refuse what cannot be run."""
    table = read_annotations(config.data)
    _print_summary(config, table)
    _refuse(config, table)
    return table


def read_annotations(data: Data) -> pa.Table:
    """The data set as ANNOTATIONS, with the share that `holdout` keeps apart as its val split."""
    table = read_dataset(data)
    return hold_out(table, data.holdout)


def read_dataset(data: Data) -> pa.Table:
    """The data set as ANNOTATIONS, split as its files say. Raises DatasetError."""
    read = DATASETS[data.dataset]
    root = Path(data.root)
    videos = VideosFolder(data.videos_place, data.follow_links)
    return read(root, videos)


def test_rows(config: RunConfig) -> pa.Table:
    """The test split of another config, to be searched too; refuses one that has no caption or no file."""
    table = read_annotations(config.data)
    rows = rows_of(table, "test")
    if rows.num_rows == 0:
        raise ConfigError(f"evaluate.also: {config.name}: {config.data.root} has no caption of a test split")

    has_no_file = pc.is_null(rows["path"])
    if pc.all(has_no_file).as_py():
        place = config.data.videos_place
        raise ConfigError(f"evaluate.also: {config.name}: no video of its test split is in {place}")
    return rows


def hold_out(table: pa.Table, share: float) -> pa.Table:
    """Call a fixed `share` of the training videos `val`. Refuses a data set that has a val split, and a
    share that is less than one video.
    """
    if not share:
        return table
    if videos_of(table, "val"):
        raise ConfigError("data.holdout: the data set has a val split of its own; leave this out")

    # sorted, so that the same videos are held out whatever the order of the annotations
    train = sorted(videos_of(table, "train"))
    num_held = round(share * len(train))
    if num_held == 0:
        raise ConfigError(
            f"data.holdout: {share:.2%} of {len(train)} training videos is less than one; give a larger share"
        )

    # a generator of its own: the same videos whatever the seed of the run
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(train)
    held = pa.array(shuffled[:num_held].tolist(), pa.string())

    # a video may stand in the test split too, and stays there
    is_train = pc.equal(table["split"], "train")
    is_held = pc.and_(is_train, pc.is_in(table["video"], held))
    split = pc.if_else(is_held, "val", table["split"])

    position = table.schema.get_field_index("split")
    field = table.schema.field(position)
    return table.set_column(position, field, split.combine_chunks())


def usable(
    config: RunConfig,
    table: pa.Table,
    decoded: Collection[str],
) -> pa.Table:
    """The rows to tune and measure with, once it is known which videos could be decoded.

    Refuses what would only fail at its end: a test split without a video, a batch that is larger than the
    training split, an option that needs rows which are not there. A val split of which nothing could be
    decoded is left out, and said so.
    """
    decoded_videos = pa.array(decoded, pa.string())
    is_decoded = pc.is_in(table["video"], decoded_videos)
    known = table.filter(is_decoded)
    if not videos_of(known, "test"):
        raise ConfigError(f"{config.data.root}: no video of the test split can be decoded")
    _check_rows(config, known)

    has_val = bool(videos_of(table, "val"))
    if has_val and not videos_of(known, "val"):
        print("  no video of the val split can be decoded: nothing is measured on it")
        is_other = pc.not_equal(table["split"], "val")
        return table.filter(is_other)
    return table


def rows_of(table: pa.Table, split: str) -> pa.Table:
    """The rows of a split."""
    is_in_split = pc.equal(table["split"], split)
    return table.filter(is_in_split)


def videos_of(table: pa.Table, split: str) -> set[str]:
    """The videos of a split."""
    videos = rows_of(table, split)["video"].unique()
    return set(videos.to_pylist())


def _print_summary(config: RunConfig, table: pa.Table) -> None:
    counts = []
    for split in SPLITS:
        num_videos = len(videos_of(table, split))
        num_captions = rows_of(table, split).num_rows
        if num_videos:
            counts.append(f"{split} {num_videos:,} videos / {num_captions:,} captions")
    print(f"{config.data.dataset} ({layout(table)}): {', '.join(counts)}")

    lines = problems(table)
    num_more = len(lines) - MOST_PROBLEMS
    for line in lines[:MOST_PROBLEMS]:
        print(f"  {line}")
    if num_more > 0:
        print(f"  and {num_more} more problems")


def _refuse(config: RunConfig, table: pa.Table) -> None:
    if not videos_of(table, "test"):
        raise ConfigError(f"{config.data.root}: no caption of the test split, so nothing can be measured")

    has_file = pc.is_valid(table["path"])
    with_file = table.filter(has_file)
    if with_file.num_rows == 0:
        num_videos = pc.count_distinct(table["video"]).as_py()
        place = config.data.videos_place
        raise ConfigError(f"{place}: none of the {num_videos} videos of the annotations is there")

    _check_rows(config, table)


def _check_rows(config: RunConfig, table: pa.Table) -> None:
    """Refuse options that need rows which `table` does not have. Raises ConfigError."""
    if "tune" not in config.stages:
        return
    train = videos_of(table, "train")
    has_val = bool(videos_of(table, "val"))

    # of several learning rates the one is kept that is best on val
    chooses = any(is_trained(run) and not isinstance(run.train.lr, float) for run in config.methods)
    if chooses and not has_val:
        raise ConfigError(
            "train.lr: a search over learning rates needs a val split, and there is none; data.holdout=5%"
            " keeps a share of the training videos apart"
        )

    measures = {*config.evaluate.post_processing, *config.evaluate.parity}
    if "qb_norm" in measures and not train:
        raise ConfigError(
            "evaluate: qb_norm compares with the captions of the train split, and there is none"
        )

    # a batch holds a video once, unless repeat_videos lets it come again
    for run in config.methods:
        trains = is_trained(run) and not run.train.repeat_videos
        if trains and len(train) < run.train.batch_size:
            raise ConfigError(
                f"methods.{run.name}.train.batch_size: {run.train.batch_size} is more than the {len(train)}"
                " videos there are to train on"
            )
