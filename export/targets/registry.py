"""Which builder makes the engines of a back end."""

from __future__ import annotations

from refusion_edge.export.targets.builder import Builder
from refusion_edge.export.targets.fused import FUSED
from refusion_edge.export.targets.portable import NATIVE, ONNXRUNTIME, OPENVINO
from refusion_edge.export.targets.tensorrt import CLASSIC, RTX

BUILDERS: dict[str, Builder] = {
    "fused": FUSED,
    "tensorrt": CLASSIC,
    "tensorrt-rtx": RTX,
    "native": NATIVE,
    "openvino": OPENVINO,
    "onnxruntime": ONNXRUNTIME,
}
"""Every back end that engines are built for."""
