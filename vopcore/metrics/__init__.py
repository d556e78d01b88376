"""Retrieval metrics from similarities: pure functions on tensors, exact, in blocks."""

from vopcore.metrics.count import MetricError
from vopcore.metrics.evaluate import Metrics, evaluate
from vopcore.metrics.ranks import Ranks

__all__ = ["MetricError", "Metrics", "Ranks", "evaluate"]
