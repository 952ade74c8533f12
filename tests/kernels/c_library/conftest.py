"""The C library, configured, built and installed once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from refusion_edge.network import fast
from refusion_edge.network.checkpoint import Checkpoint, write_safetensors
from tests.conftest import ROOT
from tests.kernels.c_library.c_library import load_library
from tests.oracles import fast as fast_oracle


def command(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed without a warning."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="session")
def compilers() -> None:
    if shutil.which("cmake") is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("needs cmake and a C++ compiler")


@pytest.fixture(scope="session")
def installed(compilers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the library and its example are installed in, at another place than they were built for."""
    folder = tmp_path_factory.mktemp("c_library")
    options = "-DREFUSION_EDGE_GPU=ON", f"-DCMAKE_INSTALL_PREFIX={folder / 'elsewhere'}", "-DCMAKE_INSTALL_LIBDIR=lib"
    command("cmake", "-S", ROOT, "-B", folder / "build", *options)
    command("cmake", "--build", folder / "build", "--parallel", "2")
    command("cmake", "--install", folder / "build")
    shutil.rmtree(folder / "build")
    return (folder / "elsewhere").rename(folder / "installed")


@pytest.fixture(scope="session")
def library(installed: Path) -> Any:
    return load_library(installed / "lib/librefusion_edge.so")


@pytest.fixture
def fast_weights() -> Path:
    path = Path("fast.safetensors").resolve()
    write_safetensors(path, Checkpoint("ir_vis", fast_oracle.random_state(fast.FastLayout())))
    return path
