"""Image fusion with the ReFusion network, from training to live cameras on edge devices.

Importing this package imports nothing heavy; every public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from refusion_edge.bundle import EngineBundle, Manifest, read_bundle
    from refusion_edge.checkpoint import Checkpoint, read_checkpoint, write_pth, write_safetensors
    from refusion_edge.errors import RefusionError
    from refusion_edge.export.build import BuildReport, build
    from refusion_edge.export.spec import BuildSpec
    from refusion_edge.fuser import Fuser, load
    from refusion_edge.images import read_image, write_image
    from refusion_edge.tasks import TASKS, Task

__all__ = [
    "TASKS",
    "BuildReport",
    "BuildSpec",
    "Checkpoint",
    "EngineBundle",
    "Fuser",
    "Manifest",
    "RefusionError",
    "Task",
    "__version__",
    "build",
    "load",
    "read_bundle",
    "read_checkpoint",
    "read_image",
    "write_image",
    "write_pth",
    "write_safetensors",
]

_HOMES = {
    "TASKS": "tasks",
    "BuildReport": "export.build",
    "BuildSpec": "export.spec",
    "Checkpoint": "checkpoint",
    "EngineBundle": "bundle",
    "Fuser": "fuser",
    "Manifest": "bundle",
    "RefusionError": "errors",
    "Task": "tasks",
    "build": "export.build",
    "load": "fuser",
    "read_bundle": "bundle",
    "read_checkpoint": "checkpoint",
    "read_image": "images",
    "write_image": "images",
    "write_pth": "checkpoint",
    "write_safetensors": "checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
