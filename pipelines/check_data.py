"""What is in a data set's files, before hours of work: a report in seconds.

    python pipelines/check_data.py conf/activitynet.yaml data.root=/data/ActivityNet
    python pipelines/check_data.py conf/msvd.yaml --headers all --json

Exit codes: 0 the splits can be used (there may be warnings), 1 they cannot, 2 the config is wrong.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.arguments import CommandLine
from pipelines.command.exit_codes import DONE, FAILED, exit_code_of


def num_headers(text: str) -> int | None:
    """`all`, or how many files to open."""
    return None if text == "all" else int(text)


CLI = CommandLine("check_data", __doc__)
CLI.add_argument("config", help="a YAML file, such as conf/activitynet.yaml")
CLI.add_overrides()
CLI.add_argument(
    "--headers",
    type=num_headers,
    default=200,
    metavar="N|all",
    help="how many files to open (200)",
)
CLI.add_argument(
    "--missing", metavar="FILE", help="where missing videos are listed (OUTPUT/missing_videos.txt)"
)
CLI.add_argument("--json", action="store_true", help="print the whole report as JSON")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    arguments = CLI.parse_intermixed_args(argv)

    # imported step by step, as --help and a mistake in the config should not wait for torch
    from vopcore.config import read_config

    config = read_config(arguments.config, arguments.overrides)

    from pipelines.experiment.data_check import as_text, report_on, token_counter, unreadable_data
    from pipelines.experiment.kept_output import working_folder
    from vopcore.datasets import DatasetError

    missing_list = Path(arguments.missing or working_folder(config.output) / "missing_videos.txt")
    count = token_counter(config)
    try:
        report = report_on(config, count, arguments.headers, missing_list)
    except DatasetError as error:
        report = unreadable_data(config, error)

    if arguments.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print(as_text(report))
    return DONE if report["usable"] else FAILED


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
