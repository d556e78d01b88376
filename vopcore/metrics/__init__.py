"""Retrieval metrics from similarities: pure functions on tensors, exact, in blocks."""

from vopcore.metrics.evaluate import Metrics, evaluate
from vopcore.metrics.parity import PARITY, published
from vopcore.metrics.ranks import Ranks
from vopcore.metrics.rescale import dsl, qb_norm
from vopcore.metrics.truth import MetricError
from vopcore.metrics.two_stage import TwoStage
from vopcore.metrics.workers import Workers

__all__ = [
    "PARITY",
    "MetricError",
    "Metrics",
    "Ranks",
    "TwoStage",
    "Workers",
    "dsl",
    "evaluate",
    "published",
    "qb_norm",
]
