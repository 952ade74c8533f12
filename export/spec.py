"""What to build: an engine, what to make it from, and where to put it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusion_edge.bundle.spec import EngineSpec
from refusion_edge.images.pairs import ImagePair
from refusion_edge.network.quantization import CalibrationTable


@dataclass(frozen=True, slots=True)
class BuildSpec(EngineSpec):
    """An engine, what to make it from, and where to put it.

    Attributes:
        weights: Weights file, or None for the weights of the package.
        output: Folder of the bundle, or None for a name made from the rest.
        use_cache: Whether an engine that was built before from the same things may be used again.
        calibration: Ranges for int8, from ``refusion_edge.calibration.int8``; None for other precisions.
        judges: Pairs that the gate of an int8 engine looks at besides the sample pairs; they were not calibrated with.
    """

    weights: Path | None = None
    output: Path | None = None
    use_cache: bool = True
    calibration: CalibrationTable | None = None
    judges: tuple[ImagePair, ...] = ()

    @property
    def engine(self) -> EngineSpec:
        """The engine alone."""
        names = EngineSpec.__dataclass_fields__
        return EngineSpec(**{name: getattr(self, name) for name in names})
