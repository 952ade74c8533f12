"""TensorRT-RTX on NVIDIA RTX devices; its plans are built on any machine and compiled to the end where they are loaded."""

from __future__ import annotations

from refusion_edge.backends import Status
from refusion_edge.tensorrt import flavour
from refusion_edge.tensorrt.runner import PlanRunner


def probe() -> Status:
    """Report the installed version, the driver and the device."""
    return flavour.probe(flavour.TENSORRT_RTX)


class TrtRtxBackend(PlanRunner):
    """A TensorRT-RTX plan. Implements ``Backend``."""

    name = "tensorrt-rtx"
    flavour = flavour.TENSORRT_RTX
