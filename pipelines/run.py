"""From a YAML file and a folder of videos to a comparison in MLflow.

    python pipelines/run.py conf/quickstart.yaml
    python pipelines/run.py conf/quickstart.yaml method.name=vop train.epochs=2

Exit codes: 0 done, 1 a run or a shard failed, 2 something to put right in the config or the data,
3 too many videos failed, 130 interrupted. The last line says the code and the reason, as `ray job submit`
knows only 0 and 1.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.arguments import CommandLine
from pipelines.command.exit_codes import DONE, exit_code_of, stop_like_ctrl_c
from pipelines.command.print_settings import PrintSettings

CLI = CommandLine(
    "run",
    __doc__,
    epilog="Every key of the file can be overridden: seed=1, output=outputs/other, video.frames=8,\n"
    "methods.vop.train.lr=1e-3, compare=[vop,vop_fc], stages=[ingest]. A finished run is kept and shown\n"
    "again; run=NAME tunes anew under that name.",
)
CLI.add_argument(
    "--settings",
    action=PrintSettings,
    help="print every key of a config and what it is for",
)
CLI.add_argument("config", help="a YAML file, such as conf/quickstart.yaml")
CLI.add_overrides()


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    arguments = CLI.parse_args(argv)
    stop_like_ctrl_c()
    logging.basicConfig(
        level=logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )

    # imported step by step, as --help and a mistake in the config should not wait for torch and Ray
    from vopcore.config import read_config

    config = read_config(arguments.config, arguments.overrides)

    from pipelines.experiment.runs import run_experiment

    run_experiment(config, Path(arguments.config))
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
