"""What a finished run shows in MLflow: the numbers that matter, its costs in words, a description."""

from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag

ALL_METRICS = "metrics.json"  # a run's artifact: every number, not rounded
SHOWN = {  # the numbers that MLflow shows, and to how many digits they mean something
    "t2v/R1": 2,
    "t2v/R1_low": 2,
    "t2v/R1_high": 2,
    "t2v/R5": 2,
    "t2v/R10": 2,
    "t2v/MdR": 1,
    "v2t/R1": 2,
    "val/t2v/R1": 2,
    "params/trainable": 0,
    "seconds/tune": 1,
    "memory/peak_mb": 0,
    "queries/expected": 0,
}
CURVES = ("train/loss", "train/videos_per_second", "val/t2v/R1")  # over steps; others go with the artifacts
NOTE = "mlflow.note.content"  # what MLflow shows as a description
MOST_ROWS = 20  # of the experiment's description


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of `metrics` that MLflow shows, rounded."""
    return {name: round(metrics[name], digits) for name, digits in SHOWN.items() if name in metrics}


def cost_words(metrics: Mapping[str, float]) -> dict[str, str]:
    """What tuning cost, in words: `trainable`, `tuning time`, `memory`."""
    words = {}
    if "params/trainable" in metrics:
        share = f" ({metrics['params/percent']:.2g}%)" if "params/percent" in metrics else ""
        words["trainable"] = f"{metrics['params/trainable']:,.0f}{share}"
    if "seconds/tune" in metrics:
        words["tuning time"] = _duration(metrics["seconds/tune"])
    if "memory/peak_mb" in metrics:
        words["memory"] = f"{metrics['memory/peak_mb'] / 1024:.1f} GiB"
    return words


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def describe(client: MlflowClient, run_id: str, metrics: Mapping[str, float]) -> None:
    """Write the run's costs and its description, and anew what its experiment compares."""
    run = client.get_run(run_id)
    words = cost_words(metrics)
    texts = words | {NOTE: _run_note(run, metrics, words)}
    client.log_batch(run_id, tags=[RunTag(name, text) for name, text in texts.items()])

    experiment_id = run.info.experiment_id
    client.set_experiment_tag(experiment_id, NOTE, _experiment_note(client, experiment_id))


def _run_note(run: Run, metrics: Mapping[str, float], words: Mapping[str, str]) -> str:
    tags = run.data.tags
    sentences = [
        f"**{tags.get('method', '?')}** on {tags.get('dataset', '?')}, seed {tags.get('seed', '?')},"
        f" {tags.get('backbone', '?')}, {run.data.params.get('method.pooling', 'mean')} pooling."
    ]
    if "t2v/R1" in metrics:
        recall = f"Text to video R@1 **{metrics['t2v/R1']:.1f}%**"
        if "t2v/R1_low" in metrics:
            recall += f" (95%: {metrics['t2v/R1_low']:.1f} to {metrics['t2v/R1_high']:.1f})"
        sentences.append(f"{recall}.")
    if words:
        costs = ", ".join(f"{name} {text}" for name, text in words.items())
        sentences.append(f"{costs[0].upper()}{costs[1:]}.")
    return " ".join(sentences)


def _experiment_note(client: MlflowClient, experiment_id: str) -> str:
    """A table of the best runs: what was compared, on what."""
    runs = client.search_runs(
        [experiment_id], "metrics.`t2v/R1` >= 0", order_by=["metrics.`t2v/R1` DESC"], max_results=MOST_ROWS
    )
    datasets = sorted({run.data.tags.get("dataset", "?") for run in runs})
    methods = {run.data.tags.get("method") for run in runs}
    lines = [
        f"{len(methods)} ways to tune a frozen CLIP on {', '.join(datasets)}, best text to video R@1 first.",
        "",
        "| method | seed | t2v R@1 | trainable | tuning time |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        tags = run.data.tags
        cells = [
            tags.get("method", "?"),
            tags.get("seed", "?"),
            f"{run.data.metrics['t2v/R1']:.1f}",
            tags.get("trainable", ""),
            tags.get("tuning time", ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
