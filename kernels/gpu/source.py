"""What ties a GPU kernel together, and the pieces that kernels declare it with.

A file of this folder that holds an operation has all of it: the formula, the NumPy reference, the Triton kernel, and at the
end its ``Source``, with the parameters in order and one whole launch computed by the reference.
``refusion_edge.kernels.gpu.schedule`` collects the sources by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Parameter

FEATURES = "features*"
"""Type of a parameter with the dtype of the features: float16 in programs, any floating dtype in tests."""

SIZE = (Parameter("height", "int32"), Parameter("width", "int32"))


@dataclass(frozen=True, slots=True)
class Source:
    """One kernel source.

    Attributes:
        name: Its name in program files; the Triton function is ``<name>_kernel``.
        function: The Triton function; a plain function where Triton is not installed.
        parameters: In order; types may be ``FEATURES``.
        launch_reference: Computes a whole launch with the NumPy reference: takes the arguments (flat arrays and integers) and
            the constants by name and the number of streams, and writes into the arrays. Where strips contribute to a sum, the
            first strip gets the sum of the image and the others get zeros.
    """

    name: str
    function: Any
    parameters: tuple[Parameter, ...]
    launch_reference: Callable[[Mapping[str, Any], int], None]

    def run_reference(self, arguments: Mapping[str, Any], streams: int) -> None:
        """Compute one launch with the NumPy reference.

        Args:
            arguments: Arguments and constants by name; pointers are flat arrays that end where the buffer ends.
            streams: Number of streams.
        """
        # What leaves the range of half precision becomes an infinity, as it does on a device.
        with np.errstate(over="ignore", invalid="ignore"):
            self.launch_reference(arguments, streams)


def pointers(*names: str, type: str = FEATURES, written: bool = False) -> tuple[Parameter, ...]:
    """Declare pointers, ``x_ptr`` for the name ``x``."""
    return tuple(Parameter(f"{name}_ptr", type, written) for name in names)


def float32_pointers(*names: str, written: bool = False) -> tuple[Parameter, ...]:
    """Declare pointers to single precision, whatever the dtype of the features."""
    return pointers(*names, type="float32*", written=written)


def features(arguments: Mapping[str, Any], name: str, *shape: int) -> Array:
    """View a buffer as (streams, H, W, *shape)."""
    array: Array = arguments[name].reshape(-1, arguments["height"], arguments["width"], *shape)
    return array


def layer_norm_parameters(arguments: Mapping[str, Any], stream: int) -> tuple[Array, Array]:
    """Gain and bias of the layer norm of one stream, each (C,)."""
    channels = arguments["C"]
    return arguments["gain_ptr"].reshape(-1, channels)[stream], arguments["bias_ptr"].reshape(-1, channels)[stream]
