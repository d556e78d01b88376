"""Run a matrix of configs, methods, variants and seeds, and say what has changed since the last time.

    python pipelines/benchmark.py conf/benchmarks/quick.yaml
    python pipelines/benchmark.py conf/benchmarks/vop_paper.yaml configs.lsmdc=null set.train.epochs=1

Cells that are finished with the same settings, data and code are shown again, failed ones are tried again,
--rerun runs all anew. Interrupt it anywhere: the same command goes on. In `output`, history/ keeps what each
round found, comparison.html, .md and .json say what has changed, logs/ what each cell said.

Exit codes: 0 done, 1 a cell failed, 2 something to put right in the config or the data, 4 a cell finds less
than the last time, by more than noise; 130 interrupted.
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
from pipelines.command.exit_codes import exit_code_of, stop_like_ctrl_c

CLI = CommandLine(
    "benchmark",
    __doc__,
    epilog="Every key of the file can be overridden: seeds=[0,1,2], output=outputs/other, at_once=4,\n"
    "set.KEY=VALUE for all configs, configs.NAME.set.data.root=/data/msrvtt for one, tables.NAME=null\n"
    "leaves a table out, configs.NAME=null a config.",
)
CLI.add_argument("matrix", help="a YAML file, such as conf/benchmarks/quick.yaml")
CLI.add_overrides()
CLI.add_argument("--rerun", action="store_true", help="run finished cells anew")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    arguments = CLI.parse_intermixed_args(argv)
    stop_like_ctrl_c()
    logging.basicConfig(
        level=logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )

    # imported step by step, as --help and a mistake in the config should not wait for torch and Ray
    from vopcore.config import draft_cells, read_matrix

    matrix = read_matrix(arguments.matrix, arguments.overrides)

    # every cell's mistakes that can be told without torch; the benchmark itself tells the others
    draft_cells(matrix)

    from pipelines.matrix.benchmark import run_benchmark

    return run_benchmark(matrix, arguments.rerun, Path(arguments.matrix))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
