"""A real MLflow store with runs whose numbers one knows."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import track
from vopcore.metrics.predictions import PREDICTIONS


@functools.cache
def _migrated() -> Path:
    """An empty store; MLflow takes seconds to make one, so it is made once and copied."""
    folder = Path(tempfile.mkdtemp())
    track.open_store(None, "spare", folder)
    return folder / "mlflow.db"


def make_store(folder: Path, experiment: str = "msrvtt_9k") -> track.RunStore:
    shutil.copy(_migrated(), folder / "mlflow.db")
    return track.open_store(f"sqlite:///{folder / 'mlflow.db'}", experiment, folder)


def add_run(
    store: track.RunStore,
    method: str,
    seed: int = 0,
    *,
    recall: float | None = 40.0,
    trainable: float = 1e5,
    dataset: str = "msrvtt_9k",
    status: str = "FINISHED",
    predictions: pa.Table | None = None,
    transfers: dict[str, pa.Table] | None = None,
    params: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
) -> str:
    """A run as `run.py` leaves it; `recall` None: nothing was measured. transfers: PREDICTIONS of other test
    splits.
    """
    key = f"{method}-s{seed}-{len(params or {})}{dataset}"
    own = {"dataset": dataset, "method": method, "seed": str(seed), "backbone": "ViT-B-32"} | (tags or {})
    run_id = track.start_run(store, key, f"{method} seed {seed}", {"seed": seed, **(params or {})}, own)
    if recall is not None:
        numbers = {
            "t2v/R1": recall,
            "t2v/R1_low": recall - 3,
            "t2v/R1_high": recall + 3,
            "t2v/R5": recall + 20,
        }
        numbers |= {"v2t/R1": recall + 1, "t2v/MdR": 2.0, "params/trainable": trainable, "seconds/tune": 90.0}
        for name, table in (transfers or {}).items():
            ranks = table["rank"].to_numpy()
            numbers[f"transfer/{name}/t2v/R1"] = 100 * float((ranks == 1).mean())
        track.log_results(store, run_id, numbers)
        track.log_curves(store, run_id, [(step, {"train/loss": 5.0 - step}) for step in range(3)])
    if predictions is not None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / track.PREDICTIONS
            pq.write_table(predictions, file)
            track.log_files(store, run_id, [file])
    for name, table in (transfers or {}).items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.parquet"
            pq.write_table(table, file)
            track.log_files(store, run_id, [file], track.TRANSFERS)
    if status == "RUNNING":
        return run_id
    track.end_run(store, run_id, status, {"error": "out of memory"} if status == "FAILED" else None)
    return run_id


def log_tuned(store: track.RunStore, folder: Path) -> str:
    """A finished run of vop_p with the model in `folder`, as run.py logs them; returns the run's id."""
    run_id = track.start_run(store, "vop_p-s0", "vop_p seed 0", {"train.lr": 0.1}, {"method": "vop_p"})
    track.log_metrics(store, run_id, {"t2v/R1": 41.5, "t2v/MdR": 2.0})
    track.end_run(store, run_id)
    track.log_model(store, run_id, "vop_p", folder, {"caption": "a red ball"}, {"train.lr": 0.1})
    return run_id


def predicted(ranks: list[float]) -> pa.Table:
    """PREDICTIONS of captions "a red ball 0", ... whose videos are v000, v001, ..."""
    names = [f"v{i:03}" for i in range(max(len(ranks), 6))]
    tops = []
    for own, rank in zip(names, ranks, strict=False):
        others = [name for name in names if name != own][:5]
        others.insert(int(rank) - 1, own)
        tops.append(others[:5])
    return pa.table(
        {
            "caption": [f"a red ball {i}" for i in range(len(ranks))],
            "video": names[: len(ranks)],
            "rank": ranks,
            "found": [True] * len(ranks),
            "top": tops,
            "scores": [[0.9 - 0.1 * place for place in range(len(top))] for top in tops],
        },
        schema=PREDICTIONS,
    )


def dumped(page: Path, width: int = 1400, fragment: str = "") -> str:
    """The page, at `#fragment`, as a real browser of that width holds it, after its scripts ran."""
    quiet = [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *quiet]
    command += [f"--user-data-dir={page.parent / 'chromium'}", f"--window-size={width},900", "--dump-dom"]
    command.append(f"{page.as_uri()}#{fragment}")
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
