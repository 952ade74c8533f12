"""Which precisions a device computes in, with which product."""

from __future__ import annotations

from collections.abc import Mapping

from refusion_edge.forms import Precision

# 10 times the least compute capability, by NVIDIA's support matrices of TensorRT 10 and TensorRT-RTX 1. A release may ask for
# more, and says so itself; Pascal and older have had none since TensorRT 10.
_LEAST: Mapping[str, Mapping[Precision, int]] = {
    "tensorrt": {"fp32": 70, "fp16": 70, "int8": 70},
    "tensorrt-rtx": {"fp32": 75, "fp16": 75, "int8": 80},
}


def lacking(name: str, compute_capability: str) -> tuple[Precision, ...]:
    """Precisions that a device does not compute in.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        compute_capability: Of the device, such as ``8.7``.
    """
    major, _, minor = compute_capability.partition(".")
    here = 10 * int(major) + int(minor)
    return tuple(precision for precision, least in _LEAST[name].items() if here < least)


def least_capability(name: str, precision: Precision) -> str:
    """Compute capability from which a device computes in a precision, such as ``8.0``."""
    least = _LEAST[name][precision]
    return f"{least // 10}.{least % 10}"
