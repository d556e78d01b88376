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
from vopcore.storage import working_folder

PLACES = ("output=", "data.root=")  # overrides that a card leaves out


def compare_with_card(path: Path, overrides: Sequence[str]) -> bool:
    """Run what the card says, with `overrides` over it, and print a line for each number.

    Returns whether all are inside. Raises ValueError, one line, where the data is not the reference's.
    """
    card = read_card(path)
    all_overrides = [*card.overrides, *overrides]
    config = read_config(card.config, all_overrides)
    # The quickstart's videos are drawn, not fetched.
    if config.shapes is not None:
        render_videos(config)
    check_data(card, read_annotations(config.data))

    run_experiment(config, Path(card.config))
    run = _newest_run(config, card.method)

    numbers = verdicts(card, run.metrics)
    lines = verdict_lines(
        card,
        numbers,
        run.params,
        code_version(),
    )
    print()
    print("\n".join(lines))
    return all(number.is_inside for number in numbers)


def check_data(card: Reference, annotations: pa.Table) -> None:
    """Refuse other data than the reference's: first by its counts, which say more, then by its hash."""
    for split, counts in card.data.splits.items():
        in_split = pa.compute.equal(annotations["split"], split)
        rows = annotations.filter(in_split)
        num_videos = len(rows["video"].unique())
        num_captions = len(rows)

        if num_videos != counts.videos or num_captions != counts.captions:
            raise CardError(
                f"data: the {split} split has {num_videos:,} videos and {num_captions:,} captions here,"
                f" {counts.videos:,} and {counts.captions:,} in the reference"
            )

    hash_here = data_hash(annotations)
    if hash_here != card.data.annotations:
        raise CardError(
            f"data: the annotations are others ({hash_here} here, {card.data.annotations} in the reference),"
            " though as many"
        )


def make_card_of(
    name: str | None,
    uri: str | None,
    config: str,
    overrides: Sequence[str],
    path: Path,
) -> None:
    """Write the card of the finished run `EXPERIMENT/METHOD`. Raises ValueError, one line."""
    experiment, _, word = (name or "").rpartition("/")
    if not experiment:
        raise CardError("--of: say which run, EXPERIMENT/METHOD, as in --of quickstart/vop_p")

    store = track.find_store(uri, experiment)
    chosen = track.pick(track.runs(store), word)
    run = track.with_all_metrics(store, chosen)
    splits = track.splits(store, run.id)

    # Where things are on this machine is nothing to others.
    lasting = []
    for override in overrides:
        if not override.startswith(PLACES):
            lasting.append(override)
    card = make_card(run, splits, config, tuple(lasting))
    write_card(card, path)


def _newest_run(config: RunConfig, method: str) -> track.TrackedRun:
    """The run that `run_experiment` has just made, or shown again."""
    experiment = config.mlflow.experiment or config.name
    store = track.open_store(
        config.mlflow.uri,
        experiment,
        working_folder(config.output),
    )

    # The experiment may hold other seeds of the method, and newer ones.
    seed = str(config.seed)
    runs = []
    for run in track.runs(store):
        if run.params.get("seed") == seed:
            runs.append(run)
    newest = track.pick(runs, method)
    return track.with_all_metrics(store, newest)
