"""Program files in the C library, over a fake libcuda that the test compiles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.fakes.programs import stored_program
from tests.kernels.c_library.c_library import DAMAGED, UNREADABLE, UNSUPPORTED
from tests.kernels.c_library.conftest import command

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("memory", ["integrated", "separate"])
def test_a_program_is_fused_as_in_python(installed: Path, tmp_path: Path, memory: str) -> None:
    source = ROOT / "tests/fakes/libcuda.c"
    command("cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "libcuda.so.1", source)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(tmp_path)}
    words = [sys.executable, "-m", "tests.kernels.c_library.over_libcuda", installed / "lib/librefusion_edge.so", memory]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_machine_without_driver_is_explained(library: Any) -> None:
    data = stored_program()
    Path("program.rfx").write_bytes(data)
    Path("other.rfx").write_bytes(b"something else")
    engine = library.create_program(b"program.rfx")
    if engine is not None:
        library.destroy(engine)
        pytest.skip("there is a device")
    assert library.error_code() == UNSUPPORTED
    for path, code in ((b"other.rfx", DAMAGED), (b"nowhere.rfx", UNREADABLE)):
        assert library.create_program(path) is None
        assert library.error_code() == code
