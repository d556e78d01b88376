"""What is in a data set's files, before hours of work: a report in seconds.

    python pipelines/check_data.py conf/activitynet.yaml data.root=/data/ActivityNet
    python pipelines/check_data.py conf/msvd.yaml --headers all --json

Exit codes: 0 the splits can be used (there may be warnings), 1 they cannot, 2 the config is wrong.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.arguments import CommandLine
from pipelines.command.exit_codes import DONE, FAILED, exit_code_of

if TYPE_CHECKING:
    import pyarrow as pa

    from vopcore.config import RunConfig


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
    from vopcore.config import read_draft

    draft = read_draft(arguments.config, arguments.overrides)

    from pipelines.experiment.annotations import read_dataset
    from pipelines.experiment.data_report import as_text, unreadable_data
    from vopcore.datasets import DatasetError

    try:
        table = read_dataset(draft.data)
    except DatasetError as error:
        report = unreadable_data(draft, error)
    else:
        report = _report(arguments, draft, table)

    if arguments.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print(as_text(report))
    return DONE if report["usable"] else FAILED


def _report(
    arguments: argparse.Namespace,
    draft: "RunConfig",
    table: "pa.Table",
) -> dict[str, Any]:
    """The report on annotations that can be read."""
    # only now, as a tokenizer and the size of frames may be the model's to say: torch is loaded for them
    from pipelines.experiment.data_check import report_on
    from vopcore.config import complete
    from vopcore.storage import working_folder

    config = complete(draft, arguments.config)
    missing_list = arguments.missing or working_folder(config.output) / "missing_videos.txt"
    return report_on(
        config,
        table,
        arguments.headers,
        Path(missing_list),
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
