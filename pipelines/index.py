"""Index a folder of videos, so that they can be searched by text, to the second.

    python pipelines/index.py ~/Videos
    python pipelines/index.py s3://bucket/videos model=runs:/ID/vop_p index=s3://bucket/index gpu=true
    python pipelines/index.py export INDEX moments.parquet

No captions, no YAML: conf/search.yaml shows the settings. The same command again adds new videos, renews
changed ones and drops those that are gone; interrupt it anywhere and start it again. Then:

    python pipelines/search.py INDEX "a dog runs into the sea"
    python pipelines/serve.py INDEX

Exit codes: 0 done, 1 the machines failed, 2 something to put right, 130 interrupted.
"""

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.arguments import CommandLine
from pipelines.command.exit_codes import DONE, exit_code_of, stop_like_ctrl_c
from pipelines.command.names import printable

if TYPE_CHECKING:
    from pipelines.indexing.driver import Updated
    from vopcore.config.search import SearchConfig
    from vopcore.index import IndexedVideo

SETTINGS = Path(__file__).parents[1] / "conf/search.yaml"

CLI = CommandLine("index", __doc__)
CLI.add_argument("folder", help="a folder of videos, or the URI of one")
CLI.add_overrides()
CLI.add_argument(
    "--config",
    default=SETTINGS,
    help="a file of settings in the place of conf/search.yaml",
)
CLI.add_argument(
    "--watch",
    action="store_true",
    help="go on: look at the folder again and again",
)

EXPORT = CommandLine("index", "Write an index as a Parquet file, for any other engine.")
EXPORT.add_argument("export", choices=["export"])
EXPORT.add_argument("index", help="an index that index.py has made")
EXPORT.add_argument(
    "file",
    help="the Parquet file: video, start, end, best, vector, thumbnail",
)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    if argv[:1] == ["export"]:
        return export(EXPORT.parse_args(argv))
    arguments = CLI.parse_args(argv)
    stop_like_ctrl_c()
    logging.basicConfig(
        level=logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )

    # Only now: `--help` does not wait for pydantic, and a mistake in the settings not for torch and Ray.
    from vopcore.config.search import read_search_config

    config = read_search_config(arguments.config, arguments.overrides)
    index_folder(arguments.folder, config, arguments.watch)
    return DONE


def index_folder(
    folder: str,
    config: "SearchConfig",
    watch: bool,
) -> None:
    """Make the index or bring it up to date; with `watch` until interrupted."""
    from pipelines.indexing.files import FolderError, list_videos
    from vopcore.storage import is_uri, local_path, scratch_folder, writer_lock

    root = folder if is_uri(folder) else str(local_path(folder))

    # A folder without a video is refused before anything is made, or takes seconds to import.
    list_videos(root)

    from pipelines.cluster.start import join_ray
    from pipelines.indexing import driver
    from pipelines.indexing.open import open_for_update

    uri = config.index or driver.default_index(root)

    with writer_lock(uri), scratch_folder() as scratch:
        index, work = open_for_update(uri, root, config, scratch)
        join_ray(2)
        report(driver.update(index, work), uri, index.table.failed)
        while watch:
            time.sleep(config.watch_every)
            try:
                updated = driver.update(index, work)
            except FolderError as error:  # a disk that is not mounted comes back
                print(error, flush=True)
                continue
            if updated.changed:
                report(updated, uri, index.table.failed)

    place = shlex.quote(uri)
    print(f'\n  python pipelines/search.py {place} "a dog runs into the sea"')
    print(f"  python pipelines/serve.py {place}")


def report(
    updated: "Updated",
    uri: str,
    failed: Sequence["IndexedVideo"],
) -> None:
    """What an update has done, in a line, and what could not be indexed."""
    print(
        f"{updated.videos:,} videos, {updated.moments:,} moments in {uri} ({updated.added:,} new, "
        f"{updated.renewed:,} changed, {updated.dropped:,} gone, {updated.failed:,} failed; "
        f"{updated.seconds:.0f} s)",
        flush=True,
    )
    for entry in failed[:10]:
        print(f"  {printable(entry.video)}: {entry.error}")
    if len(failed) > 10:
        print(f"  and {len(failed) - 10:,} more: {uri}/failed.csv")


def export(args: argparse.Namespace) -> int:
    """Write an index as Parquet."""
    from pipelines.indexing.export import export_parquet
    from vopcore.index import open_index

    num_moments = export_parquet(open_index(args.index), Path(args.file))
    print(f"{num_moments:,} moments in {args.file}")
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
