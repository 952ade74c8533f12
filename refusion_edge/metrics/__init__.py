"""Fusion metrics, each named together with the convention it follows.

``score(a, b, fused)`` gives what most papers print, ``score(a, b, fused, metrics_of("vifb"))`` what the VIFB benchmark
prints, ``score(a, b, fused, [find_metric("survey:Nabf")])`` a single one. The whole table is in ``registry``.
"""

from __future__ import annotations

from refusion_edge.metrics.misregistration import displace, sweep, sweep_fusion
from refusion_edge.metrics.registry import CONVENTIONS, METRICS, Metric, find_metric, metrics_of, score, score_transition

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "Metric",
    "displace",
    "find_metric",
    "metrics_of",
    "score",
    "score_transition",
    "sweep",
    "sweep_fusion",
]
