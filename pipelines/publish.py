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

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.secrets import hides_secrets

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


@hides_secrets
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = CLI.parse_args(argv)

    # Only now: `--help` does not wait for MLflow.
    from pipelines.publishing.publish import publish

    try:
        message = publish(args.run, args.to, args.uri)
        print(message)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
