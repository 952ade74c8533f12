"""This machine: the allocator of a process, in a process of its own, and the packages that extras lack."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from refusion_edge import machine
from refusion_edge.machine import missing_packages
from tests.conftest import ROOT

# Page faults of the last of three rounds that allocate and free 64 MB in blocks of 8 MB.
ROUNDS = """
import resource, sys
from refusion_edge.machine import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(8 << 20) for _ in range(8)]
    for block in blocks:
        block[::4096] = bytes([1]) * len(block[::4096])
    del block, blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# How much a process grows, in MB, if twelve threads that all live in turn take 8 MB and free it.
TURNS = """
import ctypes, sys, threading
from pathlib import Path
from refusion_edge.machine import keep_freed_memory
keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
alive, turn = threading.Barrier(12), threading.Lock()
def work():
    library.free(library.malloc(64))
    alive.wait()
    with turn:
        block = library.malloc(8 << 20)
        ctypes.memset(ctypes.c_void_p(block), 1, 8 << 20)
        library.free(block)
    alive.wait()
def size():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
threads, before = [threading.Thread(target=work) for _ in range(12)], size()
for thread in threads: thread.start()
for thread in threads: thread.join()
print(size() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_found_in_place_again() -> None:
    def faults(word: str) -> int:
        command, environment = [sys.executable, "-c", ROUNDS, word], {**os.environ, "PYTHONPATH": str(ROOT)}
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    assert faults("keep") < faults("leave") / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_threads_find_the_memory_that_others_freed() -> None:
    command, environment = [sys.executable, "-c", TURNS], {**os.environ, "PYTHONPATH": str(ROOT)}
    grown_mb = float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert grown_mb < 6 * 8.4  # of the 12 * 8.4 that they took one after the other


def test_a_library_without_the_settings_is_left_alone() -> None:
    words = "import sys; from refusion_edge.machine import keep_freed_memory as k; sys.platform = 'win32'; assert not k()"
    subprocess.run([sys.executable, "-c", words], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_extras_lack_what_is_for_this_machine_and_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "numpy>=1.26",
        'numpy>=1.26; extra == "there"',
        'of-no-index[x]>=1; extra == "absent"',
        'of-no-index; sys_platform == "plan9" and extra == "elsewhere"',
        "of-no-index; (platform_machine == 'm68k' or platform_machine == 'vax') and extra == 'elsewhere'",
        f'of-no-index; platform_machine == "{platform.machine()}" and extra == "here"',
        "of-no-index; python_version < '3.2' and extra == 'elsewhere'",
        "of-no-index; python_version >= '9.0' and extra == 'elsewhere'",
    ]
    monkeypatch.setattr(machine.metadata, "requires", lambda _name: lines)
    assert missing_packages() == {"there": (), "absent": ("of-no-index",), "elsewhere": (), "here": ("of-no-index",)}
