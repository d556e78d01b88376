"""Bring to MLflow what it could not take during a run.

    python pipelines/deliver.py outputs/msrvtt_9k/mlflow_waiting
    python pipelines/deliver.py outputs/msrvtt_9k/mlflow_waiting --uri sqlite:///mlflow.db

`--uri` names another store than the one it was meant for, or the same with a password. May be repeated.
Exit codes: 0 all is delivered, 2 there is nothing to deliver, or MLflow is still out of reach.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.arguments import CommandLine
from pipelines.command.exit_codes import DONE, REFUSED, ended, exit_code_of
from pipelines.command.secrets import without_secrets

CLI = CommandLine("deliver", __doc__)
CLI.add_argument(
    "folder",
    type=Path,
    help="mlflow_waiting in the output folder of the run",
)
CLI.add_argument("--uri", help="another store than the one it was meant for")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    arguments = CLI.parse_args(argv)
    folder = arguments.folder.absolute()

    # after the arguments: --help should not wait for mlflow
    from pipelines import track

    runs = track.waiting(str(folder))
    if not runs:
        return ended(REFUSED, f"{folder}: nothing is waiting there")

    address = json.loads((folder / track.ADDRESS).read_text())
    uri = arguments.uri or _with_its_password(address["uri"])
    store = track.RunStore(uri, None, address["experiment"], str(folder))
    track.deliver(store)
    print(f"delivered to {store.uri}: {', '.join(runs)}")
    return DONE


def _with_its_password(uri: str) -> str:
    """The store's URI is kept without its password; MLFLOW_TRACKING_URI may name the same store with it."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    return named if without_secrets(named) == uri else uri


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
