"""MLflow: one flat run per method and seed, found again by its key. The only importer of mlflow.

Every call names the store and the run: no global URI, no active run, so any process may log. What MLflow does
not take is kept in files (`journal`) and delivered later; it never ends a run.
"""

from pipelines.track.journal import waiting
from pipelines.track.read import TrackedRun, curve, fetch, pick, run, runs, splits, with_all_metrics
from pipelines.track.store import (
    RunStore,
    ServerAwayError,
    StoreError,
    find_store,
    local_uri,
    one_line,
    open_copy,
    open_or_wait,
    open_store,
    store_uri,
)
from pipelines.track.view import PORT, browse, serve_command
from pipelines.track.write import (
    ADDRESS,
    deliver,
    end_run,
    flat,
    log_config,
    log_curves,
    log_data,
    log_files,
    log_metrics,
    log_model,
    log_results,
    log_training,
    start_run,
    watch_machine,
)

# a run's artifact, see vopcore/metrics/predictions.py
PREDICTIONS = "predictions.parquet"

# a run's artifact: the learning rates that were tried, and what each came to
SEARCH = "search.csv"

# a run's folder of the same for other configs' test splits, NAME.parquet
TRANSFERS = "transfer"

__all__ = [
    "ADDRESS",
    "PORT",
    "PREDICTIONS",
    "SEARCH",
    "TRANSFERS",
    "RunStore",
    "ServerAwayError",
    "StoreError",
    "TrackedRun",
    "browse",
    "curve",
    "deliver",
    "end_run",
    "fetch",
    "find_store",
    "flat",
    "local_uri",
    "log_config",
    "log_curves",
    "log_data",
    "log_files",
    "log_metrics",
    "log_model",
    "log_results",
    "log_training",
    "one_line",
    "open_copy",
    "open_or_wait",
    "open_store",
    "pick",
    "run",
    "runs",
    "serve_command",
    "splits",
    "start_run",
    "store_uri",
    "waiting",
    "watch_machine",
    "with_all_metrics",
]
