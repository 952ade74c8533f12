"""TensorRT on NVIDIA devices, 10.3 and newer."""

from __future__ import annotations

from refusion_edge.backends import Status
from refusion_edge.tensorrt import flavour
from refusion_edge.tensorrt.runner import PlanRunner


def probe() -> Status:
    """Report the installed version, the driver and the device."""
    return flavour.probe(flavour.TENSORRT)


class TrtBackend(PlanRunner):
    """A TensorRT plan. Implements ``Backend``."""

    name = "tensorrt"
    flavour = flavour.TENSORRT
