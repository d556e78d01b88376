"""Captions with their best videos as strips of frames: the page of one run, or of two side by side."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import track
from pipelines.reports.page import render
from pipelines.reports.queries import PlayableFile, gallery_data
from vopcore.datasets import DATASETS
from vopcore.shards import Shards
from vopcore.storage import scratch_folder


def gallery_page(
    store: track.RunStore,
    runs: Sequence[track.TrackedRun],
    shards: Shards | None,
    most: int,
) -> str:
    """The page of one run or two. Raises ValueError where there is nothing to show."""
    tables = [predictions(store, run) for run in runs]
    files = video_files(runs[0])
    data = gallery_data(
        short_names(runs),
        tables,
        shards,
        most,
        files=files,
    )

    title = " beside ".join(run.name for run in runs)
    return render("gallery.html", title=title, data=data.as_json())


def short_names(runs: Sequence[track.TrackedRun]) -> list[str]:
    """The methods, where that tells the runs apart; else with their seeds, else whole names."""
    methods = []
    with_seeds = []
    for run in runs:
        method = run.tags.get("method", run.name)
        seed = run.tags.get("seed", "?")
        methods.append(method)
        with_seeds.append(f"{method} seed {seed}")

    for names in (methods, with_seeds):
        if len(set(names)) == len(names):
            return names
    return [run.name for run in runs]


def video_files(run: track.TrackedRun) -> dict[str, PlayableFile]:
    """Where the run's videos are, from the data set as its settings say; none where that is gone."""
    dataset = run.params.get("data.dataset", "")
    root = Path(run.params.get("data.root", ""))
    if dataset not in DATASETS or not root.is_dir():
        return {}

    read_dataset = DATASETS[dataset]
    try:
        table = read_dataset(root, run.params.get("data.videos", root))
    except (OSError, ValueError):
        return {}

    # A row for each caption: a video comes several times, and its last row counts.
    files = {}
    columns = table.select(["video", "path", "start", "end"])
    for row in columns.to_pylist():
        if row["path"] is not None:
            video = row["video"]
            files[video] = PlayableFile(
                path=row["path"],
                start=row["start"],
                end=row["end"],
            )
    return files


def predictions(store: track.RunStore, run: track.TrackedRun) -> pa.Table:
    """PREDICTIONS of a run; raises StoreError where it has none."""
    with scratch_folder() as folder:
        try:
            file = track.fetch(store, run.id, track.PREDICTIONS, folder)
        except track.StoreError as error:
            message = f"{run.name} has no {track.PREDICTIONS} to show: {error}"
            raise track.StoreError(message) from error
        return pq.read_table(file)


def frames(folder: str | None) -> Shards | None:
    """The shards, or None and a word on stderr: the page then goes without pictures."""
    shards = None
    if folder:
        # A folder that is gone, or that holds something else, costs the pictures alone.
        with suppress(OSError, ValueError):
            shards = Shards(folder)

    if shards is None or not shards.videos:
        print(
            f"warning: no pictures: no shards in {folder}; name their folder with --shards", file=sys.stderr
        )
        return None
    return shards
