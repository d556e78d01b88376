"""How an experiment opens in MLflow's UI: every method in a row, best recall first, with what it cost."""

import json
import shlex
from typing import Any

from pipelines.command.secrets import without_secrets
from vopcore.metrics import names

PORT = 5000  # of `mlflow ui`, where we say to open it
VIEW = "recall"

# tags, in words: the UI sorts columns of metrics by name, costs before recall
COSTS = (
    "trainable",
    "tuning time",
    "memory",
)
COLUMNS = [f"metrics.`{name}`" for name in names.HEADLINES]
COLUMNS += [f"tags.`{name}`" for name in COSTS]
SECTION = "recall-and-loss"


def _bar_chart(metric: str) -> dict[str, Any]:
    return _chart(metric) | {"type": "BAR", "runsCountToCompare": 20}


def _line_chart(metric: str) -> dict[str, Any]:
    return _chart(metric) | {
        "type": "LINE",
        "runsCountToCompare": 20,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _chart(metric: str) -> dict[str, Any]:
    return {
        "uuid": f"chart-{metric.replace('/', '-')}",
        "metricSectionId": SECTION,
        "metricKey": metric,
        "deleted": False,
        "isGenerated": False,
    }


TAGS = {  # of the experiment; the view is the UI's own format for one that is shared
    # the UI opens on runs, not on traces
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {
            "orderByKey": f"metrics.`{names.T2V_R1}`",
            "orderByAsc": False,
            # leaves out the run that holds the report
            "searchFilter": "tags.method != ''",
            "selectedColumns": COLUMNS,
            "runsHiddenMode": "SHOWALL",  # else charts leave out all but ten
            "compareRunCharts": [
                _bar_chart(names.T2V_R1),
                _line_chart(names.VAL_T2V_R1),
                _line_chart(names.LOSS),
                _bar_chart(names.V2T_R1),
            ],
            "compareRunSections": [
                {"uuid": SECTION, "name": "Recall and loss", "display": True, "isReordered": True}
            ],
            # else sections of other metrics, by name, come before it
            "isAccordionReordered": True,
        }
    ),
}


def browse(uri: str, experiment_id: str | None) -> list[str]:
    """How to look at the experiment, a line each: what to start, where it is no server, and what to open."""
    # Before anything is made of it: the lines are printed and logged.
    uri = without_secrets(uri)
    if experiment_id is None:
        return [uri]

    page = f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"
    if uri.startswith("http"):
        return [f"{uri.rstrip('/')}/{page}"]
    return [serve_command(uri), f"http://127.0.0.1:{PORT}/{page}"]


def serve_command(uri: str) -> str:
    """Serves a local store where `browse` says; one worker answers one person on any machine."""
    store = shlex.quote(without_secrets(uri))
    return f"mlflow ui --port {PORT} --workers 1 --backend-store-uri {store}"
