"""What a night of runs says: tables, plots and one page of it all, beside what the papers print.

    python pipelines/report.py quickstart
    python pipelines/report.py msrvtt_9k didemo --uri http://mlflow:5000 --out reports/week47

Writes report.html, report.md, report.csv, report.tex and plots/*.svg, and logs them to MLflow as a run named
`report`. Exit codes: 0 done, 2 nothing to show: no such store or experiment, or no finished run in it.
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
    prog="pipelines/report.py",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
)
CLI.add_argument(
    "experiments",
    nargs="+",
    metavar="EXPERIMENT",
    help="a name in MLflow; several are compared",
)
CLI.add_argument(
    "--uri", help="MLflow's store; default MLFLOW_TRACKING_URI, else outputs/EXPERIMENT/mlflow.db"
)
CLI.add_argument(
    "--out",
    type=Path,
    help="folder to write to; default outputs/reports/EXPERIMENT",
)


@hides_secrets
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = CLI.parse_args(argv)

    # Only now: `--help` does not wait for MLflow and matplotlib.
    from pipelines import track
    from pipelines.reports.document import log_report, write_report

    out = args.out or Path("outputs/reports") / "+".join(args.experiments)
    try:
        stores = [track.find_store(args.uri, name) for name in args.experiments]
        files = write_report(stores, out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    # The report is written: what MLflow does not take ends nothing.
    for store in stores:
        try:
            log_report(store, files, out)
        except ValueError as error:
            print(
                f"warning: the report is written, but not logged: {error}",
                file=sys.stderr,
            )

    print(f"Open {files[0].absolute().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
