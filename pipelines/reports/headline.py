"""The first sentences of a report: who won, by how much, how sure that is and at what cost."""

from collections.abc import Sequence

from pipelines.reports.ranking import RECALL, Ranking
from pipelines.reports.summary import MethodResult

MOST_NAMES = 4
COSTS = {"params/trainable": "parameters", "seconds/tune": "time", "memory/peak_mb": "memory"}


def headline(dataset: str, results: Sequence[MethodResult], ranking: Ranking) -> str:
    """Plain sentences about one data set."""
    best = ranking.best
    number = best.number(RECALL)
    assert number is not None, "a row without recall"

    sentences = [
        f"On {dataset}, {best.label} puts the right video first for {number.mean:.1f}% of the captions"
    ]
    if number.low is not None and number.high is not None:
        sentences[0] += f" (95% interval {max(number.low, 0):.1f} to {min(number.high, 100):.1f})"
    if len(results) > 1:
        sentences[0] += f", the most of {len(results)} methods"
    sentences.append(_cost(best))
    sentences.append(_against_full(best, results))
    sentences.append(_ties(results, ranking))
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _cost(best: MethodResult) -> str:
    percent = best.value("params/percent")
    seconds = best.value("seconds/tune")
    megabytes = best.value("memory/peak_mb")

    costs = []
    if percent is not None:
        costs.append(f"{percent:.2g}% of the parameters" if percent else "no parameter at all")
    if seconds:
        costs.append(f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds")
    if megabytes is not None:
        costs.append(f"{megabytes / 1024:.1f} GiB of memory")
    return f"Tuning it took {', '.join(costs)}" if costs else ""


def _against_full(best: MethodResult, results: Sequence[MethodResult]) -> str:
    """Against full fine-tuning, where that was run once with one setting."""
    full = [result for result in results if result.method == "full"]
    if len(full) != 1 or full[0].label == best.label:
        return ""

    points = (best.value(RECALL) or 0) - (full[0].value(RECALL) or 0)
    words = [f"Full fine-tuning finds {points:.1f} points less"]
    for metric, name in (
        ("params/trainable", "parameters"),
        ("seconds/tune", "time"),
        ("memory/peak_mb", "memory"),
    ):
        ours, theirs = best.value(metric), full[0].value(metric)
        if ours is not None and theirs:
            words.append(f"{_times(theirs, ours)} the {name}")
    return f"{words[0]} with {', '.join(words[1:])}" if len(words) > 1 else words[0]


def _times(theirs: float, ours: float) -> str:
    if not ours:
        return "all of"
    return f"{theirs / ours:,.0f} times" if theirs >= 10 * ours else f"{theirs / ours:.1f} times"


def _ties(results: Sequence[MethodResult], ranking: Ranking) -> str:
    tied = [result.label for result in results if result.label in ranking.tied]
    if len(results) < 2:
        return ""
    if not tied:
        return "Every other method is worse by more than chance"
    names = ", ".join(tied) if len(tied) <= MOST_NAMES else f"{len(tied)} other methods"
    verb = "is" if len(tied) == 1 else "are"
    return f"{names} {verb} too close to call"
