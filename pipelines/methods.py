"""What every tuning method trains and costs, on any model, without weights.

    python pipelines/methods.py
    python pipelines/methods.py --model ViT-L-14-quickgelu --json
    python pipelines/methods.py --models

Parameters are every element that asks for a gradient, each once. FLOPs are those of matrix products and
convolutions in the vision tower, forward, for one video. Exit codes: 0 done, 2 a model that cannot be tuned.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.arguments import CommandLine
from pipelines.command.exit_codes import DONE, exit_code_of

CLI = CommandLine("methods", __doc__)
CLI.add_argument(
    "--model", default="ViT-B-32-quickgelu", help="a name of open_clip, or a model config (.json)"
)
CLI.add_argument(
    "--frames",
    type=int,
    default=12,
    help="frames of the video (default: 12)",
)
CLI.add_argument(
    "--models",
    action="store_true",
    help="list every model of open_clip: which methods can tune it, and why not",
)
CLI.add_argument("--json", action="store_true", help="print JSON instead of a table")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    arguments = CLI.parse_args(argv)

    # after the arguments: --help should not wait for torch
    if arguments.models:
        return _list_models(as_json=arguments.json)
    from pipelines.experiment.method_costs import as_text, cost_table

    rows = cost_table(arguments.model, arguments.frames)
    print(json.dumps(rows, indent=2) if arguments.json else as_text(rows))
    return DONE


def _list_models(as_json: bool) -> int:
    # A list fetches nothing: a model whose files are not in the cache is a row that says so.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from pipelines.experiment.model_support import as_text, model_supports

    rows = model_supports()
    print(json.dumps([asdict(row) for row in rows], indent=2) if as_json else as_text(rows))
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
