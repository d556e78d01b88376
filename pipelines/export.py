"""Write a config's shards as WebDataset tars: frames as JPEG, captions and facts, for other people's loaders.

    python pipelines/export.py conf/msrvtt_9k.yaml outputs/msrvtt_9k/shards/FOLDER exported
    python pipelines/export.py conf/own_videos.yaml SHARDS exported data.root=/data/videos

Exit codes: 0 done, 2 something to put right in the config, or no shards there.
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

CLI = CommandLine("export", __doc__)
CLI.add_argument(
    "config",
    help="a YAML file: which data set, and where its captions are",
)
CLI.add_argument("shards", help="the folder of shards")
CLI.add_argument("folder", type=Path, help="where the tars go")
CLI.add_overrides()


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    arguments = CLI.parse_intermixed_args(argv)

    # Imported step by step: neither --help nor a mistake in the config waits for torch.
    from vopcore.config import ConfigError, read_config

    config = read_config(arguments.config, arguments.overrides)

    from pipelines.experiment.annotations import read_annotations
    from vopcore.shards import Shards
    from vopcore.shards.export import export_webdataset

    shards = Shards(arguments.shards)
    if not shards.videos:
        raise ConfigError(f"{arguments.shards}: holds no shards")

    annotations = read_annotations(config.data)
    tars = export_webdataset(shards, annotations, arguments.folder)
    num_tars = len(tars)
    print(f"{num_tars} tars in {arguments.folder}")
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
