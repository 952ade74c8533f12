"""TensorRT on NVIDIA devices, 10.3 and newer."""

from __future__ import annotations

from refusion_edge.backends.registry import Engine, RunOptions, Status
from refusion_edge.backends.tensorrt import product as products
from refusion_edge.backends.tensorrt.runner import PlanRunner


def probe() -> Status:
    """Report the installed version, the driver and the device."""
    return products.probe(products.TENSORRT)


def probe_build() -> Status:
    """Report whether plans can be built here."""
    return products.probe_build(products.TENSORRT)


def open_engine(engine: Engine, _options: RunOptions) -> TrtBackend:
    """Run the plan of a bundle."""
    return TrtBackend.of(engine)


class TrtBackend(PlanRunner):
    """A TensorRT plan. Implements ``Backend``."""

    name = "tensorrt"
    product = products.TENSORRT
