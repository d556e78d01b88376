"""Retrieval metrics from similarities: pure functions on tensors, exact, in blocks."""

from vopcore.metrics.count import MetricError
from vopcore.metrics.evaluate import Metrics, evaluate
from vopcore.metrics.parity import PARITY, published
from vopcore.metrics.ranks import Ranks
from vopcore.metrics.rescale import dsl, qb_norm

__all__ = ["PARITY", "MetricError", "Metrics", "Ranks", "dsl", "evaluate", "published", "qb_norm"]
