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
    from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_pth, write_safetensors
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
    "BuildSpec": "bundle.spec",
    "Checkpoint": "network.checkpoint",
    "EngineBundle": "bundle.folder",
    "Fuser": "fuser",
    "Manifest": "bundle.manifest",
    "RefusionError": "errors",
    "Task": "tasks",
    "build": "export.build",
    "load": "fuser",
    "read_bundle": "bundle.folder",
    "read_checkpoint": "network.checkpoint",
    "read_image": "images.io",
    "write_image": "images.io",
    "write_pth": "network.checkpoint",
    "write_safetensors": "network.checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
