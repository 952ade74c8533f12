"""Projects that use the library: found as a package, with pkg-config, and as a part of them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge._version import __version__
from refusion_edge.network.weights import weights_path
from tests.conftest import ROOT
from tests.kernels.c_library.c_library import FP32, fuse
from tests.kernels.c_library.conftest import command

pytestmark = pytest.mark.slow

CONSUMERS = ROOT / "tests/kernels/c_library/consumers"
WEIGHTS = weights_path("ir_vis")


@pytest.fixture
def printed(library: Any) -> str:
    """What every consumer prints: the version and the sum of what it fuses."""
    ramp = np.arange(16 * 20).reshape(16, 20)
    planes = ((levels % 256).astype(np.float32) / np.float32(255) for levels in (ramp * 37, 255 - ramp))
    engine = library.create(str(WEIGHTS).encode(), 1, FP32)
    fused = fuse(library, engine, *planes)
    library.destroy(engine)
    assert fused is not None
    return f"{__version__} {(fused.clip(0, 1) * np.float32(255) + 0.499999999).astype(np.uint8).sum()}\n"


def run(program: Path, **environment: str) -> str:
    return command(program, WEIGHTS, env={**os.environ, **environment}).stdout


def test_a_project_finds_the_installed_package(installed: Path, tmp_path: Path, printed: str) -> None:
    command("cmake", "-S", CONSUMERS / "package", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    command("cmake", "--build", tmp_path / "build")
    for program in ("from_c", "from_cpp_refusion_edge", "from_cpp_refusion_edge_static"):
        assert run(tmp_path / "build" / program) == printed, program
    needed = command("ldd", tmp_path / "build/from_cpp_refusion_edge_static").stdout
    assert "refusion" not in needed


def test_a_project_in_c_alone_links_both_kinds(installed: Path, tmp_path: Path, printed: str) -> None:
    command("cmake", "-S", CONSUMERS / "c_alone", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    command("cmake", "--build", tmp_path / "build")
    for program in ("from_c_refusion_edge", "from_c_refusion_edge_static"):
        assert run(tmp_path / "build" / program) == printed, program


def test_a_project_that_needs_another_version_is_refused(installed: Path, tmp_path: Path) -> None:
    project = tmp_path / "CMakeLists.txt"
    project.write_text("cmake_minimum_required(VERSION 3.18)\nproject(p NONE)\nfind_package(refusion_edge 99.0 REQUIRED)\n")
    words = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-DCMAKE_PREFIX_PATH={installed}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert __version__ in done.stderr


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_pkg_config_tells_how_to_compile_and_link(installed: Path, printed: str, kind: str) -> None:
    if shutil.which("pkg-config") is None or shutil.which("cc") is None:
        pytest.skip("needs pkg-config and a C compiler")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(installed / "lib/pkgconfig")}
    words = shlex.split(command("pkg-config", "--cflags", "--libs", "refusion_edge", env=environment).stdout)
    assert command("pkg-config", "--modversion", "refusion_edge", env=environment).stdout.strip() == __version__
    if kind == "static":
        words = shlex.split(command("pkg-config", "--static", "--cflags", "--libs", "refusion_edge", env=environment).stdout)
        words = [word.replace("-lrefusion_edge", "-l:librefusion_edge.a") for word in words]
    command("cc", "-Wall", "-Wextra", "-Werror", "-std=c99", CONSUMERS / "fuse.c", "-o", "fuse", *words)
    assert run(Path("fuse").resolve(), LD_LIBRARY_PATH="" if kind == "static" else str(installed / "lib")) == printed


def test_a_project_contains_the_library_without_python(compilers: None, tmp_path: Path, printed: str) -> None:
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    command(
        "cmake", "-S", CONSUMERS / "subdirectory", "-B", build, f"-DREFUSION_EDGE={ROOT}", f"-DCMAKE_INSTALL_PREFIX={prefix}"
    )
    command("cmake", "--build", build, "--target", "from_cpp", "--parallel", "2")
    assert run(build / "from_cpp") == printed
    command("cmake", "--install", build)
    # Nothing of the library is installed with a project that only contains it.
    assert [path.name for path in prefix.rglob("*") if path.is_file()] == ["from_cpp"]
