"""What a run found: captions with their five best videos as strips of frames, the right one marked.

    python pipelines/gallery.py quickstart vop_p
    python pipelines/gallery.py quickstart vop_p full        # side by side: fixed by one, broken by the other

A run is named by its method (the newest finished run), the start of its name ("vop_p seed 1") or its id.
Writes one HTML file that opens from disk, and logs it to the first run. Exit codes: 0 done, 2 nothing to
show.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout, also where another one is installed

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import track
from pipelines.command.secrets import hides_secrets
from pipelines.report import store_uri
from pipelines.reports.page import render
from pipelines.reports.queries import VideoFile, gallery_data
from pipelines.reports.text import file_name
from vopcore.datasets import DATASETS
from vopcore.shards import Shards
from vopcore.storage import scratch_folder

CLI = argparse.ArgumentParser(
    prog="pipelines/gallery.py",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
)
CLI.add_argument("experiment", help="its name in MLflow")
CLI.add_argument("run", help="a method, the start of a run's name, or a run's id")
CLI.add_argument("other", nargs="?", help="another run, shown beside it")
CLI.add_argument(
    "--uri", help="MLflow's store; default MLFLOW_TRACKING_URI, else outputs/EXPERIMENT/mlflow.db"
)
CLI.add_argument("--shards", help="the folder of frames, where it has moved since the run")
CLI.add_argument("--most", type=int, default=500, help="captions on the page (500)")
CLI.add_argument(
    "--out",
    type=Path,
    help="the file; default outputs/reports/EXPERIMENT/gallery_RUN.html",
)


@hides_secrets
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = CLI.parse_args(argv)
    words = [args.run]
    if args.other:
        words.append(args.other)
    name = f"gallery_{file_name('_and_'.join(words))}.html"
    folder = Path("outputs/reports") / args.experiment
    out = args.out or folder / name

    try:
        uri = store_uri(args.uri, args.experiment)
        store = track.find_store(uri, args.experiment)
        logged_runs = track.runs(store)
        runs = [track.pick(logged_runs, word) for word in words]
        shards_folder = args.shards or runs[0].tags.get("shards")
        shards = frames(shards_folder)
        page = gallery(store, runs, shards, args.most)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)

    # The page is written: what MLflow does not take ends nothing.
    try:
        with track.one_line(store.uri):
            track.log_files(store, runs[0].id, [out])
    except ValueError as error:
        print(f"warning: the gallery is written, but not logged: {error}", file=sys.stderr)

    print(f"Open {out.absolute().as_uri()}")
    return 0


def gallery(
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


def video_files(run: track.TrackedRun) -> dict[str, VideoFile]:
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
            files[video] = VideoFile(
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
