"""How an experiment opens in MLflow's UI: every run in a row, best recall first, with what it cost."""

import json
import shlex

from pipelines.command.secrets import without_secrets

PORT = 5000  # of `mlflow ui`, where we say to open it

VIEW = "recall"
COLUMNS = ("t2v/R1", "t2v/R5", "t2v/R10", "v2t/R1")
COSTS = ("params/trainable", "params/percent", "seconds/tune", "memory/peak_mb")
TAGS = {  # of the experiment; the view is the UI's own format for one that is shared
    "mlflow.experimentKind": "custom_model_development",  # the UI opens on runs, not on traces
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {
            "orderByKey": "metrics.`t2v/R1`",
            "orderByAsc": False,
            "selectedColumns": [f"metrics.`{name}`" for name in COLUMNS + COSTS],
            "runsHiddenMode": "SHOWALL",  # else charts leave out all but ten
        }
    ),
}


def browse(uri: str, experiment_id: str | None) -> list[str]:
    """How to look at the experiment, a line each: what to start, where it is no server, and what to open."""
    uri = without_secrets(uri)
    if experiment_id is None:
        return [uri]
    page = f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"
    if uri.startswith("http"):
        return [f"{uri.rstrip('/')}/{page}"]
    return [serve_command(uri), f"http://127.0.0.1:{PORT}/{page}"]


def serve_command(uri: str) -> str:
    """Serves a local store where `browse` says; one worker answers one person on any machine."""
    return f"mlflow ui --port {PORT} --workers 1 --backend-store-uri {shlex.quote(without_secrets(uri))}"
