"""The builders of all back ends that engines can be built for."""

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
"""The builder of each back end, by the name of the back end."""
