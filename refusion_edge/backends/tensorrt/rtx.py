"""TensorRT-RTX on NVIDIA RTX devices; its plans are built on any machine and compiled to the end where they are loaded."""

from __future__ import annotations

from refusion_edge.backends.registry import Engine, RunOptions, Status
from refusion_edge.backends.tensorrt import product as products
from refusion_edge.backends.tensorrt.runner import PlanRunner


def probe() -> Status:
    """Report the installed version, the driver and the device."""
    return products.probe(products.TENSORRT_RTX)


def probe_build() -> Status:
    """Report whether plans can be built here."""
    return products.probe_build(products.TENSORRT_RTX)


def open_engine(engine: Engine, _options: RunOptions) -> TrtRtxBackend:
    """Run a plan."""
    return TrtRtxBackend.of(engine)


class TrtRtxBackend(PlanRunner):
    """A TensorRT-RTX plan. Implements ``Backend``."""

    name = "tensorrt-rtx"
    product = products.TENSORRT_RTX
