"""From a YAML file and a folder of videos to a comparison in MLflow.

    python pipelines/run.py conf/quickstart.yaml
    python pipelines/run.py conf/quickstart.yaml method.name=vop train.epochs=2

Exit codes: 0 done, 1 a run or a shard failed, 2 something to put right in the config or the data,
3 too many videos failed,
130 interrupted.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout, also where another one is installed

import pyarrow as pa

from pipelines import compare, prepare
from pipelines.ingest import TooManyFailedError, ingest
from pipelines.tune import RunFailedError
from vopcore.config import RunConfig, read_config
from vopcore.shards import Shards, verify


class DamagedShardsError(RuntimeError):
    """Shards differ from their manifest; the message names each."""


CLI = argparse.ArgumentParser(
    prog="pipelines/run.py",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
    epilog="Every key of the file can be overridden: seed=1, output=outputs/other, video.frames=8,\n"
    "methods.vop.train.lr=1e-3, compare=[vop,vop_fc], stages=[ingest]. A finished run is kept and shown\n"
    "again; run=NAME tunes anew under that name.",
)
CLI.add_argument("config", help="a YAML file, such as conf/quickstart.yaml")
CLI.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = CLI.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is stopped ends like Ctrl-C
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        run(read_config(args.config, args.overrides), Path(args.config))
    except ValueError as error:  # ConfigError, DatasetError, ...: one line that says what would be right
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TooManyFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (DamagedShardsError, RunFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def run(config: RunConfig, source: Path) -> None:
    """Ingest, tune and measure what `config` says; `source` is the file it was read from."""
    prepare.check_model(config)
    prepare.check_output(config)
    prepare.quickstart_world(config)
    annotations = prepare.annotations(config)
    prepare.claim_output(config, annotations)
    prepare.check_store(config)
    config = prepare.with_upstream(config)
    prepare.start_ray(config)
    shards = decode(config, annotations)
    if "verify" in config.stages:
        _verify(shards)
    if "tune" in config.stages:
        prepare.check_decoded(config, annotations, Shards(shards))
        compare.compare(config, annotations, shards, source)


def decode(config: RunConfig, annotations: pa.Table) -> str:
    """Decode what is not in the shards yet; returns their folder."""
    video = config.video
    done = ingest(
        annotations,
        f"{config.storage or config.output}/shards",
        stored_frames=video.kept,
        size=video.size,
        sampler=video.sampler,
        storage=None if video.storage == "auto" else video.storage,
        quality=video.quality,
        max_failed=video.max_failed,
        shard_megabytes=video.shard_megabytes,
        time_limit=video.time_limit,
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
