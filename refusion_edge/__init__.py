"""Image fusion with the ReFusion network, from training to live cameras on edge devices.

Importing this package is cheap: every public name is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from refusion_edge._version import __version__

if TYPE_CHECKING:
    from refusion_edge.bundle.folder import EngineBundle, read_bundle
    from refusion_edge.bundle.manifest import Manifest
    from refusion_edge.bundle.spec import BuildSpec
    from refusion_edge.errors import RefusionError
    from refusion_edge.export.build import BuildReport, build
    from refusion_edge.fuser import Fuser, load
    from refusion_edge.images.io import read_image, write_image
    from refusion_edge.metrics import score
    from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_pth, write_safetensors
    from refusion_edge.stream.frames import FusedFrame
    from refusion_edge.stream.fused_stream import FusedStream, fuse_video
    from refusion_edge.stream.fused_stream import open_stream as stream
    from refusion_edge.stream.outputs.registry import open_sink
    from refusion_edge.stream.outputs.sinks import Sink
    from refusion_edge.tasks import TASKS, Task

__all__ = [
    "TASKS",
    "BuildReport",
    "BuildSpec",
    "Checkpoint",
    "EngineBundle",
    "FusedFrame",
    "FusedStream",
    "Fuser",
    "Manifest",
    "RefusionError",
    "Sink",
    "Task",
    "__version__",
    "build",
    "fuse_video",
    "load",
    "open_sink",
    "read_bundle",
    "read_checkpoint",
    "read_image",
    "score",
    "stream",
    "write_image",
    "write_pth",
    "write_safetensors",
]

_HOMES = {
    "TASKS": "tasks",
    "BuildReport": "export.build",
    "BuildSpec": "bundle.spec",
    "Checkpoint": "network.checkpoint",
    "EngineBundle": "bundle.folder",
    "FusedFrame": "stream.frames",
    "FusedStream": "stream.fused_stream",
    "Fuser": "fuser",
    "Manifest": "bundle.manifest",
    "RefusionError": "errors",
    "Sink": "stream.outputs.sinks",
    "Task": "tasks",
    "build": "export.build",
    "fuse_video": "stream.fused_stream",
    "load": "fuser",
    "open_sink": "stream.outputs.registry",
    "read_bundle": "bundle.folder",
    "read_checkpoint": "network.checkpoint",
    "read_image": "images.io",
    "score": "metrics",
    "stream": "stream",
    "write_image": "images.io",
    "write_pth": "network.checkpoint",
    "write_safetensors": "network.checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    # The package `stream` can be called.
    return home if _HOMES[name] == name else getattr(home, name)


def __dir__() -> list[str]:
    return __all__
