"""TensorRT plans in the C library, over stand-ins for TensorRT and the driver that the test compiles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge.images.color import to_output_range
from tests.conftest import ROOT
from tests.kernels.c_library.c_library import UNSUPPORTED
from tests.kernels.c_library.conftest import command
from tests.kernels.c_library.over_libnvinfer import write_plan_bundle

pytestmark = pytest.mark.slow

FAKES = ROOT / "tests/fakes"


@pytest.fixture(scope="module")
def built(compilers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fakes, and the library and its example compiled against them."""
    folder = tmp_path_factory.mktemp("plans")
    strict = "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"
    command("cc", *strict, "-o", folder / "libcuda.so.1", FAKES / "libcuda.c")
    headers, nvinfer = FAKES / "nvinfer", folder / "libnvinfer.so"
    driver = f"-L{folder}", "-l:libcuda.so.1", f"-Wl,-rpath,{folder}"
    words = "-std=c++17", "-I", headers, "-o", nvinfer, headers / "libnvinfer.cpp", *driver
    command("c++", *strict, *words)
    found = [f"-DTENSORRT_INCLUDE={headers}", f"-DTENSORRT_LIBRARY={nvinfer}", f"-DCUDA_INCLUDE={headers}"]
    command("cmake", "-S", ROOT, "-B", folder / "build", "-DREFUSION_EDGE_TENSORRT=ON", *found)
    command("cmake", "--build", folder / "build", "--target", "fuse_pgm", "--parallel", "2")
    return folder


def run(folder: Path, *words: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("memory", ["integrated", "separate"])
def test_a_plan_is_fused_and_what_does_not_fit_is_refused(built: Path, memory: str) -> None:
    module = "tests.kernels.c_library.over_libnvinfer"
    run(built, sys.executable, "-m", module, built / "build/librefusion_edge.so", memory)


def test_the_example_takes_the_folder_of_a_bundle(built: Path) -> None:
    a, b = np.random.default_rng(3).integers(0, 256, (2, 20, 30), np.uint8)
    for name, plane in (("a", a), ("b", b)):
        Path(f"{name}.pgm").write_bytes(b"P5\n30 20\n255\n" + plane.tobytes())
    run(built, built / "build/fuse_pgm", write_plan_bundle(Path("bundle")), "a.pgm", "b.pgm", "fused.pgm")
    fused = np.frombuffer(Path("fused.pgm").read_bytes()[-a.size :], np.uint8).reshape(a.shape)
    mean = (a.astype(np.float32) / 255 + b.astype(np.float32) / 255) / 2
    expected = np.round(to_output_range(mean, "stretch"))
    assert np.abs(fused - expected).max() <= 1


def test_a_library_without_tensorrt_says_how_to_build_it(library: Any) -> None:
    assert library.create_plan(str(write_plan_bundle(Path("bundle"))).encode(), 0) is None
    assert library.error_code() == UNSUPPORTED
