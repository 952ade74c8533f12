"""Live camera pairs: sources, pairing by sensor time, thermal gain, the running pipeline, and its outputs.

Each module has one job; only ``run`` starts threads. Modules exchange the data classes of ``frames``. Color images are BGR,
OpenCV's channel order, which cameras deliver and every output accepts.

The package can be called: ``refusion_edge.stream(ir=..., vis=...)`` is ``fused_stream.open_stream``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

# OpenCV first: after PyAV, whose wheel brings a libxcb of its own, OpenCV's windows hang.
import cv2 as _cv2  # noqa: F401

if TYPE_CHECKING:
    from refusion_edge.stream.fused_stream import FusedStream


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> FusedStream:
        from refusion_edge.stream.fused_stream import open_stream

        return open_stream(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
