"""TensorRT on NVIDIA devices, 10.3 and newer."""

from __future__ import annotations

from refusion_edge.backends import Engine, RunOptions, Status
from refusion_edge.tensorrt import flavour
from refusion_edge.tensorrt.runner import PlanRunner


def probe() -> Status:
    """Report the installed version, the driver and the device."""
    return flavour.probe(flavour.TENSORRT)


def probe_build() -> Status:
    """Report whether plans can be built here."""
    return flavour.probe_build(flavour.TENSORRT)


def open_engine(engine: Engine, _options: RunOptions) -> TrtBackend:
    """Run a plan."""
    return TrtBackend.of(engine)


class TrtBackend(PlanRunner):
    """A TensorRT plan. Implements ``Backend``."""

    name = "tensorrt"
    flavour = flavour.TENSORRT
