"""The first sentences of a report: who won, by how much, how sure that is and at what cost."""

from collections.abc import Sequence

from pipelines.reports.ranking import Ranking
from pipelines.reports.summary import MethodResult
from vopcore.metrics import names

MOST_NAMES = 4
COST_NAMES = {
    names.TRAINABLE: "parameters",
    names.TUNING_SECONDS: "time",
    names.PEAK_MEMORY: "memory",
}


def headline(
    dataset: str,
    results: Sequence[MethodResult],
    ranking: Ranking,
) -> str:
    """Plain sentences about one data set."""
    best = ranking.best
    sentences = [
        _winner(dataset, best, len(results)),
        _cost(best),
        _against_full(best, results),
        _ties(results, ranking),
    ]

    # A sentence is empty where the runs have nothing to say on its subject.
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _winner(
    dataset: str,
    best: MethodResult,
    num_methods: int,
) -> str:
    number = best.number(names.T2V_R1)
    assert number is not None, "a row without recall"

    sentence = f"On {dataset}, {best.label} puts the right video first for {number.mean:.1f}% of the captions"

    # The interval comes from a symmetric t distribution, which knows nothing of 0% and 100%.
    if number.low is not None and number.high is not None:
        low = max(number.low, 0)
        high = min(number.high, 100)
        sentence += f" (95% interval {low:.1f} to {high:.1f})"

    if num_methods > 1:
        sentence += f", the most of {num_methods} methods"
    return sentence


def _cost(best: MethodResult) -> str:
    percent = best.value(names.TRAINABLE_PERCENT)
    seconds = best.value(names.TUNING_SECONDS)
    mebibytes = best.value(names.PEAK_MEMORY)

    costs = []
    if percent == 0:
        costs.append("no parameter at all")
    elif percent is not None:
        costs.append(f"{percent:.2g}% of the parameters")

    if seconds:
        costs.append(_duration(seconds))

    if mebibytes is not None:
        gibibytes = mebibytes / 1024
        costs.append(f"{gibibytes:.1f} GiB of memory")

    if not costs:
        return ""
    return f"Tuning it took {', '.join(costs)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes"


def _against_full(best: MethodResult, results: Sequence[MethodResult]) -> str:
    """Compare with full fine-tuning, where that was run with one setting only."""
    full_results = [result for result in results if result.method == "full"]
    if len(full_results) != 1:
        return ""
    full = full_results[0]
    if full.label == best.label:
        return ""

    best_recall = best.value(names.T2V_R1) or 0
    full_recall = full.value(names.T2V_R1) or 0
    points = best_recall - full_recall
    sentence = f"Full fine-tuning finds {points:.1f} points less"

    multiples = []
    for metric, cost_name in COST_NAMES.items():
        best_cost = best.value(metric)
        full_cost = full.value(metric)
        if best_cost is not None and full_cost:
            multiples.append(f"{_times(full_cost, best_cost)} the {cost_name}")

    if not multiples:
        return sentence
    return f"{sentence} with {', '.join(multiples)}"


def _times(full_cost: float, best_cost: float) -> str:
    """`7.4 times`, `1,200 times`; `all of` where the best method costs nothing."""
    if not best_cost:
        return "all of"

    # Tenths mean something in small ratios only.
    ratio = full_cost / best_cost
    if full_cost >= 10 * best_cost:
        return f"{ratio:,.0f} times"
    return f"{ratio:.1f} times"


def _ties(results: Sequence[MethodResult], ranking: Ranking) -> str:
    if len(results) < 2:
        return ""

    # In the order of the table.
    tied = []
    for result in results:
        if result.label in ranking.tied:
            tied.append(result.label)

    if not tied:
        return "Every other method is worse by more than chance"
    if len(tied) == 1:
        return f"{tied[0]} is too close to call"
    if len(tied) <= MOST_NAMES:
        return f"{', '.join(tied)} are too close to call"
    return f"{len(tied)} other methods are too close to call"
