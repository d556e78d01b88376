"""Bring to MLflow what it could not take during a run.

    python pipelines/deliver.py outputs/msrvtt_9k/mlflow_waiting
    python pipelines/deliver.py outputs/msrvtt_9k/mlflow_waiting --uri sqlite:///mlflow.db

`--uri` names another store than the one it was meant for, or the same with a password. May be repeated.
Exit codes: 0 all is delivered, 2 there is nothing to deliver, or MLflow is still out of reach.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout, also where another one is installed

from pipelines import track
from pipelines.command.secrets import hides_secrets, without_secrets

CLI = argparse.ArgumentParser(
    prog="pipelines/deliver.py", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
)
CLI.add_argument("folder", type=Path, help="mlflow_waiting in the output folder of the run")
CLI.add_argument("--uri", help="another store than the one it was meant for")


@hides_secrets
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = CLI.parse_args(argv)
    folder = args.folder.absolute()
    runs = track.waiting(str(folder))
    if not runs:
        print(f"error: {folder}: nothing is waiting there", file=sys.stderr)
        return 2
    meant = json.loads((folder / track.ADDRESS).read_text())
    try:
        uri = args.uri or _with_its_password(meant["uri"])
        store = track.RunStore(uri, None, meant["experiment"], str(folder))
        track.deliver(store)
    except track.StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"delivered to {store.uri}: {', '.join(runs)}")
    return 0


def _with_its_password(uri: str) -> str:
    """The store's URI is kept without its password; MLFLOW_TRACKING_URI may name the same store with it."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    return named if without_secrets(named) == uri else uri


def try_to_deliver(store: track.RunStore) -> None:
    """At the end of a run: hand over what is kept, else say how to do it later."""
    if not track.waiting(store.journal):
        return
    try:
        track.deliver(store)
    except track.StoreError as error:
        print(f"\n{error}\nWhat it has not got is kept; when it is back:")
        print(f"  python pipelines/deliver.py {store.journal}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
