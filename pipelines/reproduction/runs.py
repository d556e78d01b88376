"""Runs a reference's config on data that is the reference's, and reads what came out of it."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipelines import track
from pipelines.experiment.annotations import read_annotations
from pipelines.experiment.identity import data_hash
from pipelines.experiment.provenance import code_version
from pipelines.experiment.quickstart import render_videos
from pipelines.experiment.runs import run_experiment
from pipelines.reproduction.card import CardError, Reference, make_card, read_card, write_card
from pipelines.reproduction.verdict import verdict_lines, verdicts
from vopcore.config import RunConfig, read_config


def compare_with_card(path: Path, overrides: Sequence[str]) -> bool:
    """Run what the card says, with `overrides` over it, and print a line for each number.

    Returns whether all are inside. Raises ValueError, one line, where the data is not the reference's.
    """
    card = read_card(path)
    config = read_config(card.config, [*card.overrides, *overrides])
    if config.shapes is not None:
        render_videos(config)
    check_data(card, read_annotations(config.data))

    run_experiment(config, Path(card.config))
    run = _newest_run(config, card.method)
    numbers = verdicts(card, run.metrics)
    print()
    print("\n".join(verdict_lines(card, numbers, run.params, code_version())))
    return all(number.is_inside for number in numbers)


def check_data(card: Reference, annotations: pa.Table) -> None:
    """Refuse other data than the reference's: first by its counts, which say more, then by its hash."""
    for split, counts in card.data.splits.items():
        rows = annotations.filter(pa.compute.equal(annotations["split"], split))
        videos = len(rows["video"].unique())
        if (videos, len(rows)) != (counts.videos, counts.captions):
            raise CardError(
                f"data: the {split} split has {videos:,} videos and {len(rows):,} captions here,"
                f" {counts.videos:,} and {counts.captions:,} in the reference"
            )
    here = data_hash(annotations)
    if here != card.data.annotations:
        raise CardError(
            f"data: the annotations are others ({here} here, {card.data.annotations} in the reference),"
            " though as many"
        )


def make_card_of(
    name: str | None, uri: str | None, config: str, overrides: Sequence[str], path: Path
) -> None:
    """Write the card of the finished run `EXPERIMENT/METHOD`. Raises ValueError, one line."""
    experiment, _, word = (name or "").rpartition("/")
    if not experiment:
        raise CardError("--of: say which run, EXPERIMENT/METHOD, as in --of quickstart/vop_p")
    store = track.find_store(track.store_uri(uri, Path("outputs") / experiment), experiment)
    run = track.with_all_metrics(store, track.pick(track.runs(store), word))
    lasting = [override for override in overrides if not override.startswith(("output=", "data.root="))]
    write_card(make_card(run, track.splits(store, run.id), config, tuple(lasting)), path)


def _newest_run(config: RunConfig, method: str) -> track.TrackedRun:
    """The run that `run_experiment` has just made, or shown again."""
    output = Path(config.output)
    store = track.open_store(config.mlflow.uri, config.mlflow.experiment or config.name, output)
    seeded = [run for run in track.runs(store) if run.params.get("seed") == str(config.seed)]
    return track.with_all_metrics(store, track.pick(seeded, method))
