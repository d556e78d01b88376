"""Publish a tuned run: weights, settings, every number and a model card, in a folder or on a hub.

    python pipelines/publish.py quickstart/vop_p --to published/vop_p
    python pipelines/publish.py msrvtt_9k/vop_fc --to hub:ORG/NAME        # needs a token: hf auth login

RUN is EXPERIMENT/METHOD (the newest finished run), EXPERIMENT/START-OF-NAME or EXPERIMENT/ID. Others load it:
load_tuned(clip, "hub:ORG/NAME"). Exit codes: 0 done, 2 no such run, no weights, or a hub that
does not take it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout, also where another one is installed

from pipelines import track
from pipelines.command.secrets import hides_secrets
from pipelines.publishing.folder import WEIGHTS, PublishError, write_folder

CLI = argparse.ArgumentParser(
    prog="pipelines/publish.py",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
)
CLI.add_argument(
    "run",
    metavar="RUN",
    help="EXPERIMENT/METHOD, as in quickstart/vop_p",
)
CLI.add_argument(
    "--to",
    required=True,
    metavar="PLACE",
    help="hub:ORG/NAME, or a folder",
)
CLI.add_argument(
    "--uri", help="MLflow's store; default MLFLOW_TRACKING_URI, else outputs/EXPERIMENT/mlflow.db"
)
HUB = "hub:"


@hides_secrets
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = CLI.parse_args(argv)
    try:
        message = publish(args.run, args.to, args.uri)
        print(message)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def publish(run: str, to: str, uri: str | None = None) -> str:
    """Publish what `run` names to `to`; returns what to tell the user.

    Raises ValueError (PublishError, track.StoreError), one line.
    """
    experiment, _, word = run.rpartition("/")
    if not experiment:
        raise PublishError(f"{run}: write EXPERIMENT/METHOD, as in quickstart/vop_p")

    store_uri = track.store_uri(uri, Path("outputs") / experiment)
    store = track.find_store(store_uri, experiment)
    chosen = track.pick(track.runs(store), word)

    if not to.startswith(HUB):
        folder = Path(to)
        write_folder(store, chosen, folder.name, folder)
        weights = str(folder / WEIGHTS)
        return f"{chosen.name} is in {folder}; load_tuned(clip, {weights!r}) loads it"

    name = to.removeprefix(HUB)
    if name.count("/") != 1:
        raise PublishError(f"{to}: a place on a hub is hub:ORG/NAME")

    # The folder stays: a hub that is away is tried again from there.
    folder = Path("outputs/published") / name
    write_folder(store, chosen, name, folder)

    # Only here: it takes a second to import.
    from pipelines.publishing.hub import upload

    address = upload(folder, name)
    return f"{chosen.name} is at {address}; load_tuned(clip, {to!r}) loads it"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
