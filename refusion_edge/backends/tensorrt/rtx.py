"""TensorRT-RTX on NVIDIA RTX devices; plans can be built on any machine, and their compilation finishes on loading."""

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
    """Run the plan of a bundle."""
    return TrtRtxBackend.of(engine)


class TrtRtxBackend(PlanRunner):
    """A TensorRT-RTX plan. Implements ``Backend``."""

    name = "tensorrt-rtx"
    product = products.TENSORRT_RTX
