"""An engine that costs next to nothing, for measuring everything around the network."""

from __future__ import annotations

import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Float32Array


class MeanEngine:
    """Fuses by the mean of both planes. Implements ``refusion_edge.backends.registry.Backend``."""

    name = "mean"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Return the mean in new memory."""
        return (a + b) * np.float32(0.5)
