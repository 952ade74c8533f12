"""The real layers over the CUDA driver, as far as they are installed, over a fake libcuda that the test compiles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refusion_edge import cuda
from tests.conftest import ROOT


@pytest.mark.parametrize("layer", ["cuda-bindings", "pycuda"])
def test_what_a_layer_hands_to_the_driver_is_what_it_takes(layer: str, tmp_path: Path) -> None:
    if layer not in cuda.layers():
        pytest.skip(f"{layer} is not installed")
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    source, library = ROOT / "tests/fakes/libcuda.c", tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", library, source], check=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, "-m", "tests.cuda.over_libcuda", layer]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
