"""Packages that not every machine needs, imported late and asked for in one way."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from refusion_edge.errors import MissingDependencyError


def is_installed(name: str) -> bool:
    """Tell whether a package can be found, without importing it."""
    return importlib.util.find_spec(name) is not None


def require(name: str, extra: str, purpose: str) -> Any:
    """Import a package or say what needs it and which line installs it.

    Args:
        name: Name of the module.
        extra: Extra of refusion-edge that installs it.
        purpose: What it is needed for, a noun.

    Raises:
        MissingDependencyError: It is absent or cannot be imported.
    """
    try:
        module: ModuleType = importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"expected the package {name} for {purpose}, got '{error}'; run: pip install 'refusion-edge[{extra}]'."
        ) from error
    return module
