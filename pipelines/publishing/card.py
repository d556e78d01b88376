"""The model card of a run, in the form that Hugging Face's hub reads. It says no number the run has not."""

import json
from collections.abc import Mapping
from typing import Any

from pipelines.track import TrackedRun

DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
RECALL = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MdR": "median rank", "MnR": "mean rank"}
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
    name: str, run: TrackedRun, weights: Mapping[str, Any], splits: Mapping[str, Mapping[str, int]]
) -> str:
    """Markdown with a front matter. name: `ORG/NAME` of a hub, or a folder's name.

    weights: the settings in the file of tuned weights. splits: of each, how many captions and videos.
    """
    dataset = run.tags.get("dataset", "unknown")
    parts = [
        _front_matter(run, dataset),
        f"# {name}",
        _summary(run, weights, dataset),
        f"## Load\n\n{_load(name, run)}",
        f"## Recall\n\n{_recall(run)}",
        f"## Data\n\n{_data(run, dataset, splits)}",
        f"## Recipe\n\n{_recipe(run)}",
        f"## What it was tuned on\n\n{_frozen(run, weights)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(run: TrackedRun, dataset: str) -> str:
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


def _summary(run: TrackedRun, weights: Mapping[str, Any], dataset: str) -> str:
    tuned = f"`{weights['method']}`, tuned for text-video retrieval on {dataset}"
    trainable = run.metrics.get("params/trainable")
    if trainable is None:
        return f"{tuned}."
    share = run.metrics.get("params/percent")
    percent = "" if share is None else f", {share:.2g}% of the model"
    return f"{tuned}: {trainable:,.0f} parameters{percent}, beside a frozen {weights['model']}."


def _load(name: str, run: TrackedRun) -> str:
    address = f"hub:{name}" if "/" in name else f"{name}/tuned.safetensors"
    pretrained = run.params.get("clip.pretrained")
    return LOAD.format(
        model=json.dumps(run.params.get("clip.model", "")),
        pretrained=json.dumps(pretrained) if pretrained else "None",
        address=json.dumps(address),
    )


def _recall(run: TrackedRun) -> str:
    """A table of what was measured on the test split, with intervals where there are any."""
    rows = []
    for direction, words in DIRECTIONS.items():
        for short, long in RECALL.items():
            value = run.metrics.get(f"{direction}/{short}")
            if value is None:
                continue
            low = run.metrics.get(f"{direction}/{short}_low")
            high = run.metrics.get(f"{direction}/{short}_high")
            interval = "" if low is None or high is None else f"{low:.1f} to {high:.1f}"
            rows.append(f"| {words} | {long} | {value:.1f} | {interval} |")
    if not rows:
        return "Nothing was measured."

    head = ["| direction | number | value | 95% interval |", "|---|---|---:|---|"]
    note = f"Test split, {run.tags.get('checkpoint', 'last epoch')}, seed {run.tags.get('seed', '?')};"
    return "\n".join([*head, *rows, "", f"{note} recall in percent, intervals over the test queries."])


def _data(run: TrackedRun, dataset: str, splits: Mapping[str, Mapping[str, int]]) -> str:
    lines = [f"{dataset}, annotations `{run.tags.get('data_hash', 'unknown')}`."]
    for split, counts in splits.items():
        words = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        lines.append(f"- {split}: {words}")

    found = run.metrics.get("gallery/found")
    expected = run.metrics.get("gallery/expected")
    if found is not None and expected is not None and found < expected:
        missing = expected - found
        lines.append(
            f"- {missing:,.0f} of {expected:,.0f} test videos could not be decoded and count as missed"
        )
    return "\n".join(lines)


def _recipe(run: TrackedRun) -> str:
    chosen = [
        name for name in sorted(run.params) if name.startswith(("method.", "train.", "video.", "clip."))
    ]
    lines = [f"{name}: {run.params[name]}" for name in chosen]
    return "```yaml\n" + "\n".join(lines) + "\n```"


def _frozen(run: TrackedRun, weights: Mapping[str, Any]) -> str:
    lines = [
        f"- frozen CLIP: {weights['model']}, {weights['activation']}",
        f"- SHA-256 of its weights: `{weights['backbone']}`",
        f"- SHA-256 of the tuned weights: `{weights['tensors']}`",
        f"- code: {run.tags.get('code_version', 'unknown')}",
    ]
    return "\n".join(lines)
