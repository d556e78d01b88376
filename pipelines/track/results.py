"""What a finished run shows in MLflow: the numbers that matter, its costs in words, a description."""

from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag

from vopcore.metrics import names

ALL_METRICS = "metrics.json"  # a run's artifact: every number, not rounded
SHOWN = {  # the numbers that MLflow shows, and to how many digits they mean something
    names.T2V_R1: 2,
    names.low(names.T2V_R1): 2,
    names.high(names.T2V_R1): 2,
    names.of(names.T2V, "R5"): 2,
    names.of(names.T2V, "R10"): 2,
    names.of(names.T2V, "MdR"): 1,
    names.V2T_R1: 2,
    names.VAL_T2V_R1: 2,
    names.TRAINABLE: 0,
    names.TUNING_SECONDS: 1,
    names.SEARCH_SECONDS: 1,
    names.PEAK_MEMORY: 0,
    names.QUERIES_EXPECTED: 0,
}
CURVES = (  # over steps; others go with the artifacts
    names.LOSS,
    names.THROUGHPUT,
    names.VAL_T2V_R1,
)
NOTE = "mlflow.note.content"  # what MLflow shows as a description
MOST_ROWS = 20  # of the experiment's description


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of `metrics` that MLflow shows, rounded."""
    shown = {}
    for name, digits in SHOWN.items():
        if name in metrics:
            shown[name] = round(metrics[name], digits)
    return shown


def cost_words(metrics: Mapping[str, float]) -> dict[str, str]:
    """What tuning cost, in words: `trainable`, `tuning time`, `memory`."""
    trainable = metrics.get(names.TRAINABLE)
    percent = metrics.get(names.TRAINABLE_PERCENT)
    seconds = metrics.get(names.TUNING_SECONDS)
    mebibytes = metrics.get(names.PEAK_MEMORY)

    words = {}
    if trainable is not None:
        words["trainable"] = f"{trainable:,.0f}"
        if percent is not None:
            words["trainable"] += f" ({_share(percent)}%)"

    if seconds is not None:
        words["tuning time"] = _duration(seconds)

    if mebibytes is not None:
        words["memory"] = f"{mebibytes / 1024:.1f} GiB"
    return words


def _share(percent: float) -> str:
    # Two digits that mean something, and 100 as 100.
    return f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def describe(
    client: MlflowClient,
    run_id: str,
    metrics: Mapping[str, float],
) -> None:
    """Write the run's costs and its description, and anew what its experiment compares."""
    run = client.get_run(run_id)
    words = cost_words(metrics)
    tags = [RunTag(name, text) for name, text in words.items()]
    note = _run_note(run, metrics, words)
    tags.append(RunTag(NOTE, note))
    client.log_batch(run_id, tags=tags)

    # After the run's own tags, as the table shows them.
    experiment_id = run.info.experiment_id
    experiment_note = _experiment_note(client, experiment_id)
    client.set_experiment_tag(experiment_id, NOTE, experiment_note)


def _run_note(
    run: Run,
    metrics: Mapping[str, float],
    words: Mapping[str, str],
) -> str:
    tags = run.data.tags
    method = tags.get("method", "?")
    dataset = _dataset(tags)
    seed = tags.get("seed", "?")
    backbone = tags.get("backbone", "?")
    pooling = run.data.params.get("method.pooling", "mean")
    sentences = [f"**{method}** on {dataset}, seed {seed}, {backbone}, {pooling} pooling."]

    recall = metrics.get(names.T2V_R1)
    if recall is not None:
        sentence = f"Text to video R@1 **{recall:.1f}%**"

        # The bootstrap makes both ends or none.
        low = metrics.get(names.low(names.T2V_R1))
        if low is not None:
            high = metrics[names.high(names.T2V_R1)]
            sentence += f" (95%: {low:.1f} to {high:.1f})"
        sentences.append(f"{sentence}.")

    if words:
        costs = [f"{name} {text}" for name, text in words.items()]
        sentence = ", ".join(costs)
        capitalized = sentence[0].upper() + sentence[1:]
        sentences.append(f"{capitalized}.")
    return " ".join(sentences)


def _dataset(tags: Mapping[str, str]) -> str:
    """What a run was tuned on; a folder of one's own is known by the name of its config."""
    dataset = tags.get("dataset", "?")
    return tags.get("benchmark", dataset) if dataset == "folder" else dataset


def _experiment_note(client: MlflowClient, experiment_id: str) -> str:
    """A table of the best runs: what was compared, on what."""
    recall = f"metrics.`{names.T2V_R1}`"
    runs = client.search_runs(
        [experiment_id],
        f"{recall} >= 0",
        order_by=[f"{recall} DESC"],
        max_results=MOST_ROWS,
    )

    datasets = set()
    methods = set()
    for run in runs:
        tags = run.data.tags
        datasets.add(_dataset(tags))
        methods.add(tags.get("method"))
    listing = ", ".join(sorted(datasets))

    lines = [
        f"{len(methods)} ways to tune a frozen CLIP on {listing}, best text to video R@1 first.",
        "",
        "| method | seed | t2v R@1 | trainable | tuning time |",
        "|---|---|---|---|---|",
    ]

    for run in runs:
        tags = run.data.tags
        cells = [
            tags.get("method", "?"),
            tags.get("seed", "?"),
            f"{run.data.metrics[names.T2V_R1]:.1f}",
            tags.get("trainable", ""),
            tags.get("tuning time", ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
