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
from pathlib import Path

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.secrets import hides_secrets

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
CLI.add_argument(
    "--shards",
    help="the folder of frames, where it has moved since the run",
)
CLI.add_argument(
    "--most",
    type=int,
    default=500,
    help="captions on the page (500)",
)
CLI.add_argument(
    "--out",
    type=Path,
    help="the file; default outputs/reports/EXPERIMENT/gallery_RUN.html",
)


@hides_secrets
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = CLI.parse_args(argv)

    # Only now: `--help` does not wait for MLflow.
    from pipelines import track
    from pipelines.reports.gallery import frames, gallery_page
    from pipelines.reports.text import file_name

    words = [args.run]
    if args.other:
        words.append(args.other)
    name = f"gallery_{file_name('_and_'.join(words))}.html"
    folder = Path("outputs/reports") / args.experiment
    out = args.out or folder / name

    try:
        store = track.find_store(args.uri, args.experiment)
        logged_runs = track.runs(store)
        runs = [track.pick(logged_runs, word) for word in words]
        shards_folder = args.shards or runs[0].tags.get("shards")
        shards = frames(shards_folder)
        page = gallery_page(store, runs, shards, args.most)
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
        print(
            f"warning: the gallery is written, but not logged: {error}",
            file=sys.stderr,
        )

    print(f"Open {out.absolute().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
