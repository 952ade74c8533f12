"""What to build: the engine, its sources and its destination."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusion_edge.bundle.spec import EngineSpec
from refusion_edge.images.pairs import ImagePair
from refusion_edge.network.quantization import CalibrationTable


@dataclass(frozen=True, slots=True)
class BuildSpec(EngineSpec):
    """The engine to build, its sources and its destination.

    Attributes:
        weights: Weights file, or None for the weights of the package.
        output: Folder of the bundle, or None for a default name.
        use_cache: Whether to use a cached engine built from the same sources, and to cache a new one.
        calibration: Ranges for int8, from ``refusion_edge.calibration.int8``; None for other precisions.
        gate_pairs: Pairs for the accuracy gate in addition to the sample pairs; they must not be calibration pairs.
    """

    weights: Path | None = None
    output: Path | None = None
    use_cache: bool = True
    calibration: CalibrationTable | None = None
    gate_pairs: tuple[ImagePair, ...] = ()

    @property
    def engine(self) -> EngineSpec:
        """The spec of the engine, without sources and destination."""
        names = EngineSpec.__dataclass_fields__
        return EngineSpec(**{name: getattr(self, name) for name in names})
