"""The levels of the package, and that imports only go down."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

# The architecture: a module imports only from levels below its own, and from its own package. Late and type-only imports
# count. `refusion_edge` stands for the names that the package itself exports.
LEVELS = (
    ("_version", "text", "errors", "arrays", "files", "documents", "tasks", "sizes", "machine"),
    ("images", "network", "rig", "cuda", "report"),
    ("metrics", "kernels"),
    ("backends", "train"),
    ("bundle",),
    ("accuracy",),
    ("fuser",),
    ("archive",),
    ("stream.frames", "stream.uri", "stream.system_python"),
    ("stream.statistics",),
    ("stream.sources", "stream.pairing"),
    ("stream.processing",),
    ("stream.outputs",),
    ("stream.run",),
    ("export", "evaluation", "gstreamer"),
    ("bench",),
    ("selftest", "calibration"),
    ("stream.fused_stream",),
    ("stream.site",),
    ("cli",),
    ("refusion_edge", "__main__", "kernels.emulator.__main__"),
)
# Modules of the lowest level import one another in this order.
FOUNDATION = LEVELS[0]
ROOMS = ("kernels", "export", "train", "calibration")
MOST_LOOSE_MODULES = 12

# Torch at the top of a module: only where the network, its operations and its training live.
TORCH_ALLOWED = ("kernels", "train", "network.model", "network.layers", "network.fast_module")


def folder_of(package: str) -> Path:
    # Through the import system, so that it works in every kind of installation; an editable one has several search paths.
    origin = importlib.import_module(package).__file__
    assert origin is not None
    return Path(origin).parent


def package_folder() -> Path:
    return folder_of("refusion_edge")


def room_folder(room: str) -> Path:
    return folder_of(f"refusion_edge.{room}")


def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package; the package itself is ``refusion_edge``."""
    found = {}
    folders = {"": package_folder(), **{room: room_folder(room) for room in ROOMS}}
    for prefix, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [*filter(None, [prefix]), *path.relative_to(folder).with_suffix("").parts]
            if not prefix and parts[0] in ROOMS:
                continue  # the link of a checkout
            name = ".".join(part for part in parts if part != "__init__")
            found[name or "refusion_edge"] = path
    return found


def level_of(module: str) -> tuple[int, str]:
    """Level of a module, and the row's entry that it belongs to."""
    # The longest name decides: a command in a package may be above it.
    found = [
        (len(name), number, name)
        for number, names in enumerate(LEVELS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    if not found:
        raise LookupError(module)
    return max(found)[1:]


def imported(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """Modules of this package that a module imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "refusion_edge":
                below = name.partition(".")[2]
                while below and below not in known:
                    below = below.rpartition(".")[0]
                yield below or "refusion_edge"


def violations(module: str, source: str, known: dict[str, Path]) -> list[str]:
    number, entry = level_of(module)
    bad = []
    for other in imported(ast.parse(source), known):
        below, theirs = level_of(other)
        same_home = entry == theirs and entry not in ("refusion_edge",)
        in_order = number == below == 0 and FOUNDATION.index(theirs) < FOUNDATION.index(entry)
        if not (below < number or same_home or in_order):
            bad.append(f"{module} (level {number}) imports {other} (level {below})")
    return bad


MODULES = modules()


@pytest.mark.parametrize("entry", [name for names in LEVELS for name in names])
def test_imports_only_go_down(entry: str) -> None:
    inside = {name: path for name, path in MODULES.items() if name != "stream" and level_of(name)[1] == entry}
    assert inside, f"no module belongs to {entry}; take it out of the levels"
    assert [bad for name, path in inside.items() for bad in violations(name, path.read_text(), MODULES)] == []


def test_packages_have_no_circle_inside() -> None:
    graph = {name: set(imported(ast.parse(path.read_text()), MODULES)) - {name} for name, path in MODULES.items()}
    # What nothing imports any more is taken away until nothing changes: what is left imports itself in a circle.
    while free := [name for name, uses in graph.items() if not uses & graph.keys()]:
        for name in free:
            del graph[name]
    assert sorted(graph) == []


def test_the_checks_bite() -> None:
    assert violations("export.build", "from refusion_edge.calibration.int8 import measure", MODULES)
    assert violations("fuser", "def f():\n    import refusion_edge.export.build", MODULES)
    assert violations("errors", "from refusion_edge.files import write_atomically", MODULES)
    assert violations("bundle.folder", "if TYPE_CHECKING:\n    from refusion_edge import Fuser", MODULES)
    assert not violations("files", "from refusion_edge.errors import OutputError", MODULES)


def test_the_root_holds_few_modules() -> None:
    assert len(list(package_folder().glob("*.py"))) <= MOST_LOOSE_MODULES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_torch_is_imported_only_inside_functions(module: str) -> None:
    if any(module == name or module.startswith(f"{name}.") for name in TORCH_ALLOWED):
        return
    tree = ast.parse(MODULES[module].read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] == "torch"]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_live_under_one_namespace(room: str) -> None:
    assert importlib.import_module(f"refusion_edge.{room}").__doc__
