"""The model card of a run, in the form that Hugging Face's hub reads. It says no number the run has not."""

import json
from collections.abc import Mapping
from typing import Any

from pipelines.track import TrackedRun
from vopcore.metrics import names

DIRECTIONS = {
    names.T2V: "text to video",
    names.V2T: "video to text",
}
RANK_WORDS = {
    "R1": "R@1",
    "R5": "R@5",
    "R10": "R@10",
    "MdR": "median rank",
    "MnR": "mean rank",
}
SECTIONS = ("method.", "train.", "video.", "clip.")  # of the config, on the card
LOAD = """\
```python
from vopcore.clip import load
from vopcore.methods import load_tuned

clip = load({model}, {pretrained})
tuned = load_tuned(clip, {address})
```
"""


def model_card(
    name: str,
    run: TrackedRun,
    weights: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, int]],
) -> str:
    """Markdown with a front matter. name: `ORG/NAME` of a hub, or a folder's name.

    weights: the settings in the file of tuned weights. splits: of each, how many captions and videos.
    """
    dataset = run.tags.get("dataset", "unknown")
    sections = [
        _front_matter(run, dataset),
        f"# {name}",
        _summary(run, weights, dataset),
        f"## Load\n\n{_load(name, run)}",
        f"## Recall\n\n{_recall(run)}",
        f"## Data\n\n{_data(run, dataset, splits)}",
        f"## Recipe\n\n{_recipe(run)}",
        f"## What it was tuned on\n\n{_frozen(run, weights)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(run: TrackedRun, dataset: str) -> str:
    """What the hub searches by; in JSON's quotes every name is one word of YAML."""
    lines = [
        "---",
        "library_name: vopcore",
        "tags:",
        "- text-video-retrieval",
        "- parameter-efficient",
        f"- {json.dumps(run.tags.get('method', 'unknown'))}",
        "datasets:",
        f"- {json.dumps(dataset)}",
        "---",
    ]
    return "\n".join(lines)


def _summary(
    run: TrackedRun,
    weights: Mapping[str, Any],
    dataset: str,
) -> str:
    tuned = f"`{weights['method']}`, tuned for text-video retrieval on {dataset}"
    trainable = run.metrics.get(names.TRAINABLE)
    if trainable is None:
        return f"{tuned}."

    cost = f"{trainable:,.0f} parameters"
    percent = run.metrics.get(names.TRAINABLE_PERCENT)
    if percent is not None:
        cost += f", {percent:.2g}% of the model"
    return f"{tuned}: {cost}, beside a frozen {weights['model']}."


def _load(name: str, run: TrackedRun) -> str:
    """The lines of Python that load it. Names stand in JSON's quotes, which are Python's too."""
    address = f"hub:{name}" if "/" in name else f"{name}/tuned.safetensors"
    model = run.params.get("clip.model", "")

    # A model of the user's own needs no name of weights.
    pretrained = run.params.get("clip.pretrained")
    pretrained_code = json.dumps(pretrained) if pretrained else "None"

    return LOAD.format(
        model=json.dumps(model),
        pretrained=pretrained_code,
        address=json.dumps(address),
    )


def _recall(run: TrackedRun) -> str:
    """A table of what was measured on the test split, with intervals where there are any."""
    rows = []
    for direction, direction_words in DIRECTIONS.items():
        for number, number_words in RANK_WORDS.items():
            metric = names.of(direction, number)
            if metric in run.metrics:
                cells = [direction_words, number_words, *_value_and_interval(run, metric)]
                rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return "Nothing was measured."

    checkpoint = run.tags.get("checkpoint", "last epoch")
    seed = run.tags.get("seed", "?")
    lines = [
        "| direction | number | value | 95% interval |",
        "|---|---|---:|---|",
        *rows,
        "",
        f"Test split, {checkpoint}, seed {seed}; recall in percent, intervals over the test queries.",
    ]
    return "\n".join(lines)


def _value_and_interval(run: TrackedRun, metric: str) -> tuple[str, str]:
    """`41.2`, `40.5 to 41.9`; the second is empty where the run made no interval."""
    value = f"{run.metrics[metric]:.1f}"
    low = run.metrics.get(names.low(metric))
    high = run.metrics.get(names.high(metric))
    if low is None or high is None:
        return value, ""
    return value, f"{low:.1f} to {high:.1f}"


def _data(
    run: TrackedRun,
    dataset: str,
    splits: Mapping[str, Mapping[str, int]],
) -> str:
    data_hash = run.tags.get("data_hash", "unknown")
    lines = [f"{dataset}, annotations `{data_hash}`."]
    for split, counts in splits.items():
        words = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        lines.append(f"- {split}: {words}")

    # Recall is over all videos that the split names, so the reader is told what could not be read.
    num_decoded = run.metrics.get(names.GALLERY_FOUND)
    num_expected = run.metrics.get(names.GALLERY_EXPECTED)
    if num_decoded is not None and num_expected is not None and num_decoded < num_expected:
        num_missing = num_expected - num_decoded
        lines.append(
            f"- {num_missing:,.0f} of {num_expected:,.0f} test videos could not be decoded"
            " and count as missed"
        )
    return "\n".join(lines)


def _recipe(run: TrackedRun) -> str:
    """The settings that decide the numbers; not those of the machine or of its folders."""
    settings = []
    for name, value in sorted(run.params.items()):
        if name.startswith(SECTIONS):
            settings.append(f"{name}: {value}")
    lines = ["```yaml", *settings, "```"]
    return "\n".join(lines)


def _frozen(run: TrackedRun, weights: Mapping[str, Any]) -> str:
    code_version = run.tags.get("code_version", "unknown")
    lines = [
        f"- frozen CLIP: {weights['model']}, {weights['activation']}",
        f"- SHA-256 of its weights: `{weights['backbone']}`",
        f"- SHA-256 of the tuned weights: `{weights['tensors']}`",
        f"- code: {code_version}",
    ]
    return "\n".join(lines)
