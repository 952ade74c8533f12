"""Rooms, and which way imports point between them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = ("kernels", "export", "train", "calibration")

# What may not be imported from where; a room is the first part of the name below refusion_edge.
FORBIDDEN: dict[str, set[str]] = {
    "kernels": {"export", "train", "calibration", "cli", "fuser", "bundle", "backends", "images", "pairs", "model"},
    "export": {"train", "calibration", "cli"},
    "train": {"export", "calibration", "cli", "backends", "fuser", "bundle"},
    "calibration": {"export", "train", "cli"},
    "backends": {"export", "train", "calibration", "cli", "fuser"},
    "stream": {"export", "train", "calibration", "cli", "evaluation", "metrics", "model"},
    "latency": {"export", "train", "calibration", "cli"},
    "core": {"export", "train", "calibration", "cli"},
}
# Torch, at the top of a file, only where the network, its operations and its training live.
TORCH_ALLOWED = {"kernels", "train", "model", "network"}


def room_folder(room: str) -> Path:
    # Through the import system, so that it works in every kind of installation.
    package = "refusion_edge" if room == "core" else f"refusion_edge.{room}"
    return Path(next(iter(importlib.import_module(package).__path__)))


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "refusion_edge" else ""


def sources(room: str) -> Iterator[Path]:
    folder = room_folder(room)
    if room == "core":
        yield from (path for path in sorted(folder.glob("*.py")) if path.name not in ("__init__.py", "__main__.py"))
    else:
        yield from sorted(folder.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(room: str, source: str) -> list[str]:
    return [name for name in imports(ast.parse(source)) if room_of(name) in FORBIDDEN[room]]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_inwards(room: str) -> None:
    found = {path.name: bad for path in sources(room) if (bad := violations(room, path.read_text()))}
    assert found == {}


def test_the_check_bites() -> None:
    assert violations("export", "from refusion_edge.train.losses import sobel") == ["refusion_edge.train.losses.sobel"]
    assert violations("core", "def f():\n    import refusion_edge.export.build") == ["refusion_edge.export.build"]


@pytest.mark.parametrize("room", ["core", "backends", "latency", "stream", "export", "cli", "samples", "weights"])
def test_torch_is_imported_only_inside_functions(room: str) -> None:
    for path in sources(room):
        if path.stem in TORCH_ALLOWED:
            continue
        tree = ast.parse(path.read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not [name for name in imports(top) if name.split(".")[0] == "torch"], path


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_live_under_one_namespace(room: str) -> None:
    assert importlib.import_module(f"refusion_edge.{room}").__doc__
