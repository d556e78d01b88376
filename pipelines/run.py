"""From a YAML file and a folder of videos to a comparison in MLflow.

    python pipelines/run.py conf/quickstart.yaml
    python pipelines/run.py conf/quickstart.yaml method.name=vop train.epochs=2

Exit codes: 0 done, 1 a run or a shard failed, 2 something to put right in the config or the data,
3 too many videos failed, 130 interrupted. The last line says the code and the reason, as `ray job submit`
knows only 0 and 1.
"""

import argparse
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout, also where another one is installed

import pyarrow as pa

from pipelines.cluster import machines
from pipelines.cluster.start import start_ray
from pipelines.command.exit_codes import Arguments, ended
from pipelines.command.print_settings import PrintSettings
from pipelines.command.secrets import hides_secrets
from pipelines.experiment import prepare, runs
from pipelines.ingest.driver import TooManyFailedError, ingest
from pipelines.tune.driver import RunFailedError
from vopcore.config import RunConfig, read_config
from vopcore.shards import Shards, verify
from vopcore.storage import below


class DamagedShardsError(RuntimeError):
    """Shards differ from their manifest; the message names each."""


CLI = Arguments(
    prog="pipelines/run.py",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
    epilog="Every key of the file can be overridden: seed=1, output=outputs/other, video.frames=8,\n"
    "methods.vop.train.lr=1e-3, compare=[vop,vop_fc], stages=[ingest]. A finished run is kept and shown\n"
    "again; run=NAME tunes anew under that name.",
)
CLI.add_argument("--settings", action=PrintSettings, help="print every key of a config and what it is for")
CLI.add_argument("config", help="a YAML file, such as conf/quickstart.yaml")
CLI.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")


@hides_secrets
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is stopped ends like Ctrl-C
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        args = CLI.parse_args(argv)
        run(read_config(args.config, args.overrides), Path(args.config))
    except ValueError as error:  # ConfigError, DatasetError, ...: one line that says what would be right
        return ended(2, error)
    except TooManyFailedError as error:
        return ended(3, error)
    except (DamagedShardsError, RunFailedError) as error:
        return ended(1, error)
    except KeyboardInterrupt:
        return ended(130, "the same command goes on from here", "interrupted")
    except Exception as error:  # a mistake of ours, or a cluster that is gone
        traceback.print_exc()
        return ended(1, f"{type(error).__name__}: {error}")
    return 0


def run(config: RunConfig, source: Path) -> None:
    """Ingest, tune and measure what `config` says; `source` is the file it was read from."""
    prepare.check_model(config)
    machines.check_places(config)
    prepare.check_output(config)
    prepare.quickstart_world(config)
    annotations = prepare.annotations(config)
    prepare.claim_output(config, annotations)
    prepare.check_store(config)
    config = prepare.with_upstream(config)
    start_ray(config)
    machines.check_machines(config)
    machines.check_shared(config)
    shards = decode(config, annotations)
    if "verify" in config.stages:
        _verify(shards)
    if "tune" in config.stages:
        prepare.check_decoded(config, annotations, Shards(shards))
        machines.wait_for_machines(config.resources)
        runs.compare(config, annotations, shards, source)


def decode(config: RunConfig, annotations: pa.Table) -> str:
    """Decode what is not in the shards yet; returns their folder."""
    video = config.video
    done = ingest(
        annotations,
        below(config.storage or config.output, "shards"),
        stored_frames=video.kept,
        size=video.size,
        sampler=video.sampler,
        storage=None if video.storage == "auto" else video.storage,
        quality=video.quality,
        max_failed=video.max_failed,
        shard_megabytes=video.shard_megabytes,
        time_limit=video.time_limit,
        videos=config.data.videos,
    )
    print(
        f"{done.videos:,} videos: {done.ok:,} ok, {done.damaged} damaged, {done.failed} failed"
        f" ({done.decoded_now:,} decoded now, in {done.seconds:.0f} s); shards in {done.folder}"
    )
    if done.failed:
        print(f"  why they failed: {done.folder}/failed.csv")
    return done.folder


def _verify(folder: str) -> None:
    """Read every shard in full and compare it with what was committed."""
    faults = verify(folder)
    if faults:
        hint = "delete each with its .json, and stages=[ingest] decodes it anew"
        raise DamagedShardsError(
            "\n  ".join([f"{len(faults)} shards are not what was written; {hint}", *faults])
        )
    print(f"every shard in {folder} is what was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
