"""Explains why a plan does not load on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from refusion_edge.backends.tensorrt.product import PRODUCTS, Log, Product
from refusion_edge.cuda.driver import Device
from refusion_edge.errors import MisfitError

# First bytes of a plan; the four numbers of its version are at byte 24, where trtexec --getPlanVersionOnly reads them.
_MAGIC = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}
_VERSION = slice(24, 28)

_REASONS = {
    "VERSION_MISMATCH": "it was built with another version",
    "UNSUPPORTED_CC": "it was built for other devices",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA libraries are too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the device has too little memory for it",
    "MALFORMED_ENGINE": "it is damaged",
    "CUDA_ERROR": "the CUDA driver reports an error",
}


def plan_version(plan: bytes, product: Product) -> str | None:
    """Version of the compiler that wrote a plan, such as ``10.3.0.26``; None if it is not a plan of this product."""
    if plan[: len(_MAGIC[product.name])] != _MAGIC[product.name] or len(plan) < _VERSION.stop:
        return None
    return ".".join(map(str, plan[_VERSION]))


def explain(
    trt: Any, runtime: Any, plan: bytes, *, product: Product, device: Device, built_for: tuple[str, ...], log: Log, remedy: str
) -> MisfitError:
    """Make the error for a plan that did not load: what the plan is, what this machine is, and how to build one that fits.

    Args:
        trt: The module of the product.
        runtime: The ``Runtime`` that refused the plan.
        plan: Content of the plan.
        product: The product that should run it.
        device: The device of this machine.
        built_for: Compute capabilities that it was built for; empty if unknown.
        log: Log of TensorRT.
        remedy: What to do, without a full stop.
    """
    reasons = list(_reasons(trt, runtime, plan, product, device, built_for)) or [log.first_error]
    return MisfitError(
        f"the plan does not load in {product.title} {trt.__version__} on {device} ({'; '.join(reasons)})", remedy
    )


def _reasons(
    trt: Any, runtime: Any, plan: bytes, product: Product, device: Device, built_for: tuple[str, ...]
) -> Iterator[str]:
    version = plan_version(plan, product)
    if version is None:
        other = next((one.title for one in PRODUCTS.values() if plan_version(plan, one)), None)
        yield f"it is a plan of {other}" if other else "it is not a plan, or is damaged"
        return
    if not _same_version(version, trt.__version__):
        yield f"it was built with {product.title} {version}"
    if built_for and device.compute_capability not in built_for:
        yield f"it was built for compute capability {', '.join(built_for)}"
    validity: Callable[[bytes], tuple[Any, int]] | None = getattr(runtime, "get_engine_validity", None)
    if validity is not None:
        _, findings = validity(plan)
        for name, flag in trt.EngineInvalidityDiagnostics.__members__.items():
            if int(findings) & int(flag):
                yield _REASONS.get(name, name)


def _same_version(version: str, other: str) -> bool:
    # Some releases leave the build number out of __version__.
    pairs = zip(version.split("."), other.split("."), strict=False)
    return all(one == two for one, two in pairs)
