"""Evaluation of whole folders of fused images: matching files, scoring on all cores, statistics and reports."""

from __future__ import annotations

from refusion_edge.evaluation.evaluate import evaluate
from refusion_edge.evaluation.report import Report

__all__ = ["Report", "evaluate"]
