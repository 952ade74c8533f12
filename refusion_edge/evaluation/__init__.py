"""Scoring whole folders of fused images: which files belong together, all cores, statistics, reports."""

from __future__ import annotations

from refusion_edge.evaluation.evaluate import evaluate
from refusion_edge.evaluation.report import Report

__all__ = ["Report", "evaluate"]
