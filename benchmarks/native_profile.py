"""Sample which operations of the native kernels take the CPU time of an image, beside the least that they could take.

Run as ``python -m benchmarks.native_profile`` from the repository's root, on Linux, with the native module built. It needs
CMake, compilers of C and C++, and binutils. The C library is built with debug information, which does not change the code,
and fuses a random pair in this process, on one thread, with the fastest instruction set. Every few milliseconds of its CPU
time, a signal records the address of the current instruction (``samples.c``); the debug information says which operation it
belongs to, as in ``native_counts``. Between the images runs the loop of pure multiply-adds of ``native_cpu``.

``ideal`` is the time that the multiply-adds of an operation take at the rate of that loop. An operation with n samples is
known to about one part in the square root of n. Time that an operation waits for memory is its own.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.native_counts import ROOT, inlined_functions, multiply_adds, operation_of
from refusion_edge.backends import native
from refusion_edge.backends.registry import status
from refusion_edge.machine import processor
from refusion_edge.network.weights import weights_path

SIZE_HW = (480, 640)
TOOLS = ("cmake", "cc", "addr2line")
OUTSIDE = "outside the kernels"
_ROUNDS = 4_000_000
_INTERVAL_US = 1000
_MOST_SAMPLES = 1_000_000
_FP32 = 0  # REFUSION_EDGE_FP32


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="images that are fused (default: 100)")
    parser.add_argument("--build", type=Path, default=ROOT / "build/profile", help="folder of the build")
    options = parser.parse_args()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} not found; install cmake, gcc, g++ and binutils")
    if not status("native").usable:
        sys.exit(f"the back end native is not usable: {status('native').reason}; run: {status('native').fix}")
    library, sampler = build(options.build)
    isa, addresses, cpu_s, peak = sample(library, sampler, options.images)
    first, last = loaded_at(Path("/proc/self/maps").read_text(), library)
    inside = [address - first for address in addresses if first <= address < last]
    functions = inlined_functions(library, sorted(set(inside)), tools="")
    counts = Counter(operation_of(functions[address]) or OUTSIDE for address in inside)
    counts[OUTSIDE] += len(addresses) - len(inside)
    height, width = SIZE_HW
    print(f"{processor()}, {isa}, {width}x{height}, {options.images} images, {len(addresses)} samples")
    print(f"multiply-add peak: {peak / 1e9:.1f} GFLOP per CPU-second; CPU time per image: median {cpu_s:.4f} s")
    print(table(counts, multiply_adds(None), 1e9 * cpu_s / (height * width), 2e9 / peak))
    return 0


def build(folder: Path) -> tuple[Path, Path]:
    """Compile the library and the sampler; returns the paths of both."""
    library, sampler = folder / "librefusion_edge.so", folder / "samples.so"
    for words in (
        ("cmake", "-S", ROOT, "-B", folder, "-DREFUSION_EDGE_EXAMPLE=OFF", "-DCMAKE_CXX_FLAGS=-g"),
        ("cmake", "--build", folder, "--target", "refusion_edge", "--parallel", "2"),
        ("cc", "-shared", "-fPIC", "-O2", Path(__file__).with_name("samples.c"), "-o", sampler),
    ):
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{words[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return library.resolve(), sampler.resolve()


def sample(library: Path, sampler: Path, images: int) -> tuple[str, list[int], float, float]:
    """Fuse a random pair; returns the instruction set, the sampled addresses, the median CPU time, and FLOP per CPU-second."""
    kernels, samples = ctypes.CDLL(str(library)), ctypes.CDLL(str(sampler))
    kernels.refusion_edge_create.restype = ctypes.c_void_p
    kernels.refusion_edge_isa.restype = ctypes.c_char_p
    kernels.refusion_edge_error.restype = ctypes.c_char_p
    samples.stop.restype = ctypes.c_size_t
    engine = ctypes.c_void_p(kernels.refusion_edge_create(str(weights_path("ir_vis")).encode(), 1, _FP32))
    if not engine:
        sys.exit(kernels.refusion_edge_error().decode())
    isa = kernels.refusion_edge_isa(engine).decode()
    height, width = SIZE_HW
    draw = np.random.default_rng(1)
    planes = [draw.random(SIZE_HW, np.float32) for _ in range(3)]
    row = ctypes.c_ssize_t(4 * width)
    words = [word for plane in planes[:2] for word in (plane.ctypes.data_as(ctypes.c_void_p), row)]

    def fuse() -> float:
        start = time.process_time()
        if kernels.refusion_edge_fuse(engine, *words, height, width, planes[2].ctypes.data_as(ctypes.c_void_p), row):
            sys.exit(kernels.refusion_edge_error().decode())
        return time.process_time() - start

    fuse()  # warm-up
    module = native.load_module()
    room = np.empty(_MOST_SAMPLES, np.uint64)
    addresses: list[int] = []
    cpu_s, peaks = [], []
    for _ in range(images):
        # The clock of the process is coarse for a while after a timer of its CPU time; that of the thread is not.
        start = time.thread_time()
        flop = 2 * module.multiply_adds(isa, _ROUNDS)
        peaks.append(flop / (time.thread_time() - start))
        if samples.start(room.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(room)), _INTERVAL_US):
            sys.exit("the system refuses a timer of CPU time; run on Linux without a sandbox")
        cpu_s.append(fuse())
        addresses += room[: samples.stop()].tolist()
    kernels.refusion_edge_destroy(engine)
    return isa, addresses, float(np.median(cpu_s)), float(np.median(peaks))


def loaded_at(maps: str, library: Path) -> tuple[int, int]:
    """Where a library begins and ends in memory, from /proc/self/maps."""
    ranges = [line.split()[0].split("-") for line in maps.splitlines() if line.endswith(str(library))]
    return int(ranges[0][0], 16), int(ranges[-1][1], 16)


def table(samples: Mapping[str, int], needed: Mapping[str, float], pixel_ns: float, multiply_add_ns: float) -> str:
    """The rows of a table in Markdown, per pixel; ``needed`` are the multiply-adds of a pixel."""
    rows = ["| operation | multiply-adds | ideal, ns | time, ns | more than ideal, ns |", "| --- | ---: | ---: | ---: | ---: |"]
    total = sum(samples.values())
    names = sorted(samples, key=lambda name: -samples[name])
    lines = [(name, samples[name], needed.get(name, 0.0)) for name in names]
    for name, count, work in [*lines, ("sum", total, sum(needed.values()))]:
        ideal_ns, taken_ns = work * multiply_add_ns, count / total * pixel_ns
        figures = [f"{work:.0f}", f"{ideal_ns:.0f}"] if work else ["", ""]
        rows.append(f"| {name} | {' | '.join(figures)} | {taken_ns:.0f} | {taken_ns - ideal_ns:.0f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
