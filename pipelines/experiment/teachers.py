"""The runs that `train.distill` names: looked up, compared with what is to be tuned, their weights kept."""

import tempfile
from pathlib import Path

from pipelines import track
from pipelines.ingest.driver import ingest_settings
from pipelines.tune.worker import WEIGHTS, TeacherRun
from vopcore.config import ConfigError, RunConfig
from vopcore.config.read import read_backbone
from vopcore.config.sections import Backbone
from vopcore.storage import Store, below

KEY = "train.distill.teacher"


def fetch_teachers(config: RunConfig, data_hash: str) -> dict[str, TeacherRun]:
    """Each teacher of the config's methods, by its name there, with its tuned weights in the config's own
    folder, where all workers see them.

    Raises ConfigError, one line: no such run, one that is not finished, or one on other data or frames.
    """
    named = [run.train.distill.teacher for run in config.methods if run.train.distill is not None]
    if not named or "tune" not in config.stages:
        return {}

    # a teacher may be of any experiment of the store
    experiment = config.mlflow.experiment or config.name
    try:
        store = track.open_store(config.mlflow.uri, experiment, Path(config.output))
        return {name: _fetch(config, store, name, data_hash) for name in dict.fromkeys(named)}
    except track.StoreError as error:
        raise ConfigError(f"{KEY}: {error}") from None


def _fetch(
    config: RunConfig,
    store: track.RunStore,
    name: str,
    data_hash: str,
) -> TeacherRun:
    run_id = name.removeprefix("runs:/")
    run = track.run(store, run_id)
    who = f"{KEY}: {name} ({run.name})"
    _refuse(config, who, run, data_hash)
    clip = _clip_of(who, run)

    file = f"{run_id}.safetensors"
    home = Store(below(config.storage or config.output, "teacher"))
    if not home.exists(file):
        with tempfile.TemporaryDirectory() as folder:
            weights = track.fetch(store, run_id, f"tuned/{WEIGHTS}", Path(folder))
            home.write(file, weights.read_bytes())

    frames = int(run.params["video.frames"])
    seed = int(run.params["seed"])
    return TeacherRun(
        home.folder,
        file,
        clip,
        frames,
        seed,
    )


def _refuse(
    config: RunConfig,
    who: str,
    run: track.TrackedRun,
    data_hash: str,
) -> None:
    """A teacher must have been tuned to its end, on the same captions and frames."""
    if run.status != "FINISHED":
        raise ConfigError(f"{who} is {run.status.lower()}, and a teacher must be finished")

    learned_from = run.tags.get("data_hash")
    if learned_from != data_hash:
        dataset = run.tags.get("dataset", "?")
        raise ConfigError(
            f"{who} was tuned on other data ({dataset}, {learned_from}) than this config's"
            f" ({config.data.dataset}, {data_hash})"
        )

    own = Path(ingest_settings(config.output, config.video).folder).name
    shards = Path(run.tags.get("shards", "?").partition("?")[0]).name
    if shards != own:
        raise ConfigError(f"{who} was tuned on other shards ({shards}) than this config's ({own})")


def _clip_of(who: str, run: track.TrackedRun) -> Backbone:
    """The frozen CLIP that the teacher was tuned on."""
    settings = {key: run.params.get(f"clip.{key}") for key in ("model", "pretrained", "words")}
    try:
        return read_backbone(settings)
    except ConfigError as error:
        raise ConfigError(f"{who}: its {error}") from None
