"""What a finished run leaves on the disk, and how that reaches MLflow.

Results come first: the numbers are written as soon as they are known, and with them all that MLflow is to
get. What MLflow or a model does not take afterwards costs no tuning: the same command tries it again.
"""

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.train import Checkpoint

from pipelines import track
from pipelines.experiment.prepare import DecodedData
from pipelines.tune.worker import WEIGHTS, WorkerResult
from vopcore.config import MethodRun
from vopcore.metrics import names
from vopcore.retriever import Precision
from vopcore.storage import Store, scratch_folder
from vopcore.tuned_model import ModelSettings, VideoVectors, save_model

# In the folder of what is not logged yet.
FACTS = "facts.json"
NAMES = "videos.json"
VECTORS = "vectors.npy"


@dataclass(frozen=True)
class RunResult:
    """The numbers of a finished run. run_id: MLflow's; metrics: by the names that MLflow shows."""

    method: str
    seed: int
    key: str
    run_id: str
    metrics: Mapping[str, float]

    @classmethod
    def read(cls, file: Path) -> Self:
        """What `ResultFiles.write` wrote."""
        return cls(**json.loads(file.read_text()))


@dataclass(frozen=True)
class ResultFiles:
    """The files of one run in `folder`, all named by its key."""

    folder: Path
    key: str

    @property
    def numbers(self) -> Path:
        """A RunResult; the run is finished once this is there."""
        return self.folder / f"{self.key}.json"

    @property
    def predictions(self) -> Path:
        """PREDICTIONS of the test split."""
        return self.folder / f"{self.key}.parquet"

    def transfer(self, name: str) -> Path:
        """PREDICTIONS of the test split of the config `name`, which was searched too."""
        return self.folder / f"{self.key}.{name}.parquet"

    @property
    def search(self) -> Path:
        """The trials of the search for the learning rate, a line each, where there was one."""
        return self.folder / f"{self.key}.search.csv"

    @property
    def unlogged(self) -> Path:
        """A folder of what MLflow still has to get: gone once it has everything."""
        return self.folder / f"{self.key}.unlogged"

    def write(self, result: RunResult, measured: WorkerResult, checkpoint: Checkpoint) -> None:
        """Keep what a run found; the numbers come last, when all the rest is there."""
        store = Store(self.folder)
        with store.writing(self.predictions.name) as path:
            pq.write_table(measured.predictions, path)
        for name, table in measured.transfers.items():
            with store.writing(self.transfer(name).name) as path:
                pq.write_table(table, path)

        # of a run that ended just here
        shutil.rmtree(self.unlogged, ignore_errors=True)
        self.unlogged.mkdir()
        with checkpoint.as_directory() as folder:
            shutil.copy(Path(folder) / WEIGHTS, self.unlogged / WEIGHTS)
        facts = {
            "steps": measured.steps,
            "tags": measured.tags,
            "transfers": list(measured.transfers),
        }
        (self.unlogged / FACTS).write_text(json.dumps(facts))
        vectors = measured.gallery
        if vectors is not None:
            (self.unlogged / NAMES).write_text(json.dumps(vectors.names))
            np.save(self.unlogged / VECTORS, vectors.vectors)

        store.write(self.numbers.name, json.dumps(asdict(result), indent=1).encode())


def log_result(
    data: DecodedData,
    store: track.RunStore,
    run: MethodRun,
    files: ResultFiles,
    result: RunResult,
    settings: Mapping[str, Any],
) -> None:
    """Bring a finished run to MLflow and end it there; the model comes last, as some servers take none."""
    run_id = result.run_id
    facts = json.loads((files.unlogged / FACTS).read_text())
    # the curves end here
    track.log_results(store, run_id, result.metrics, facts["steps"])

    with scratch_folder() as folder:
        artifact = folder / track.PREDICTIONS
        shutil.copy(files.predictions, artifact)
        track.log_files(store, run_id, [artifact])
        for name in facts.get("transfers", ()):
            copy = folder / f"{name}.parquet"
            shutil.copy(files.transfer(name), copy)
            track.log_files(store, run_id, [copy], track.TRANSFERS)
    track.log_files(store, run_id, [files.unlogged / WEIGHTS], "tuned")
    if files.search.is_file():
        _log_search(store, run_id, files.search)
    track.end_run(store, run_id, tags=facts["tags"])

    if data.config.mlflow.model != "none":
        precision: Precision = "bf16" if facts["tags"]["precision"] == "bf16" else "fp32"
        _log_model(data, store, run, files, run_id, settings, precision)


def _log_search(store: track.RunStore, run_id: str, file: Path) -> None:
    """The table of the trials, and two curves over them: of rates, and of what each has come to."""
    with scratch_folder() as folder:
        artifact = folder / track.SEARCH
        shutil.copy(file, artifact)
        track.log_files(store, run_id, [artifact])

    points = []
    with file.open() as lines:
        for number, line in enumerate(csv.DictReader(lines), 1):
            numbers = {
                names.SEARCH_RATE: float(line["lr"]),
                names.SEARCH_CURVE: float(line["val_t2v_R1"]),
            }
            points.append((number, numbers))
    track.log_curves(store, run_id, points)


def _log_model(
    data: DecodedData,
    store: track.RunStore,
    run: MethodRun,
    files: ResultFiles,
    run_id: str,
    settings: Mapping[str, Any],
    precision: Precision,
) -> None:
    """The tuned method, ready to be loaded anywhere; precision: what its towers were trained in."""
    config = data.config
    model_settings = ModelSettings(
        **config.clip.model_dump(),
        **config.video.model_dump(include={"frames", "sampler", "resize", "interpolation"}),
        size=config.video.side,
        stored_frames=config.video.kept,
        seed=config.seed,
        precision=precision,
    )
    vectors = None
    if (files.unlogged / VECTORS).is_file():
        videos = json.loads((files.unlogged / NAMES).read_text())
        vectors = VideoVectors(videos, np.load(files.unlogged / VECTORS))

    is_test = pc.equal(data.annotations["split"], "test")
    caption = data.annotations.filter(is_test)["caption"][0].as_py()
    with scratch_folder() as folder:
        model = folder / "search"
        save_model(model, model_settings, files.unlogged / WEIGHTS, vectors)
        track.log_model(store, run_id, run.name, model, {"caption": caption}, settings)


def clear_unlogged(files: ResultFiles) -> None:
    """MLflow has everything."""
    shutil.rmtree(files.unlogged, ignore_errors=True)
