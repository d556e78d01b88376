"""Run a reference again and say of every number whether it agrees: inside or outside of its 95% interval.

    python pipelines/reproduce.py conf/reference/CARD.yaml data.root=/data/msrvtt
    python pipelines/reproduce.py --make CARD.yaml --of quickstart/vop_p conf/quickstart.yaml

Fetches nothing: where the data is is said by `data.root=`, and it must be the reference's, by the hash of its
annotations and by its counts. If a number is outside, the first setting that differs is named. --make writes
the card of a finished run that the config and the overrides led to. Exit codes: those of run.py, and 4: a
number is outside.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.arguments import CommandLine
from pipelines.command.exit_codes import DONE, exit_code_of

CLI = CommandLine("reproduce", __doc__)
CLI.add_argument("file", help="a reference card; with --make a config")
CLI.add_overrides()
CLI.add_argument(
    "--make",
    type=Path,
    metavar="CARD",
    help="write a card instead of comparing with one",
)
CLI.add_argument(
    "--of",
    metavar="RUN",
    help="with --make: EXPERIMENT/METHOD of the finished run",
)
CLI.add_argument(
    "--uri",
    help="with --make: MLflow's store; default outputs/EXPERIMENT/mlflow.db",
)
OUTSIDE = 4


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    arguments = CLI.parse_intermixed_args(argv)

    # Imported here, as --help should not wait for torch and Ray
    from pipelines.reproduction.runs import compare_with_card, make_card_of

    if arguments.make:
        make_card_of(
            arguments.of,
            arguments.uri,
            arguments.file,
            arguments.overrides,
            arguments.make,
        )
        print(f"written: {arguments.make}")
        return DONE

    card = Path(arguments.file)
    is_inside = compare_with_card(card, arguments.overrides)
    return DONE if is_inside else OUTSIDE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
