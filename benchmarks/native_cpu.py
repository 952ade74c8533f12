"""Compare the native back end with the other CPU engines and with the processor's own limit, in one process, in turns.

``native`` runs the paper's network and ``native fast`` the network ``fast``; the others run the paper's.

Run as ``python -m benchmarks.native_cpu`` from the repository's root, with the native module built. Every turn runs a loop
of pure multiply-adds and then each engine once, so that a busy machine slows all of them. The results are medians over the
turns and ratios of CPU time, which a busy machine changes least. Memory is the peak that one image adds to a separate
process. The images are random numbers from a fixed seed: the kernels do the same work on any image.
Where the processor has bf16, the engines that compute in it run as well. The figures of ``native`` name the instruction set,
and goals are those of that set; ``REFUSION_EDGE_ISA`` selects another one.

Work per pixel is counted as the weights of all convolutions and the products of queries and keys, one multiply-add each;
GELU, norms and residuals are not counted, so the share of the peak is that of useful multiply-adds. ``native fast`` computes
its convolutions by Winograd's F(4, 3), which needs half of the counted multiplications: its share may exceed 100 %.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends import native
from refusion_edge.backends.registry import BACKENDS, Backend, Engine, RunOptions, open_engine, open_weights, status
from refusion_edge.kernels.cpu.compiled import chosen_isa
from refusion_edge.machine import processor
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.family import make_model
from refusion_edge.network.fast import FastLayout
from refusion_edge.network.parameters import DIM, NUM_BLOCKS, NUM_HEADS, PARAMETERS
from refusion_edge.network.weights import weights_path

SIZE_HW = (480, 640)
SIZES_HW = ((120, 160), (240, 320), SIZE_HW, (720, 1280), (1080, 1920))
OTHERS = ("onnxruntime", "openvino")
OURS = ("native", "native fast")
# By instruction set, as each has its own number of registers and processors of its own. A set without goals only prints.
LEAST_SHARE = {
    "avx512": {"native": 0.54, "native fast": 0.75},
    "avx2": {"native": 0.60, "native fast": 0.75},
}
LEAST_RATIO = {
    "avx512": {"onnxruntime": 2.8, "openvino": 2.4},
    "avx2": {"onnxruntime": 4.0, "openvino": 3.2},
}
LEAST_RATIO_FAST = 10.0
MOST_MB = {"native": 110.0, "native fast": 4.0}
MOST_SPREAD = 0.15
_ROUNDS = 4_000_000
_BF16, _FAST = " bf16", " fast"
_REPEATS_FAST = 5  # in a turn, so that the clock has something to measure


def main() -> int:
    """Print the figures; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="turns of all engines (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every engine (default: 1)")
    parser.add_argument("--memory-of", metavar="NAME", help="only print the megabytes that one image adds with this engine")
    parser.add_argument(
        "--others", nargs="*", default=OTHERS, choices=OTHERS, help="other engines (default: all that are usable)"
    )
    options = parser.parse_args()
    if options.memory_of:
        print(_added_mb(options.memory_of))
        return 0
    if not status("native").usable:
        sys.exit(f"the back end native is not usable: {status('native').reason}; run: {status('native').fix}")
    others = [name for name in options.others if BACKENDS[name].takes_weights and status(name).usable]
    if native.instruction_sets("bf16"):
        others += [f"{name}{_BF16}" for name in ("native", *others) if "bf16" in BACKENDS[name].forms]
    print(f"{processor()}, load {os.getloadavg()[0]:.1f}, {options.threads} thread(s), {options.turns} turns")
    met = _compare(others, options.turns, options.threads)
    for name in OURS:
        met &= _cost_per_pixel(name, options.turns)
    for name in (*OURS, *others):
        command = [sys.executable, "-m", "benchmarks.native_cpu", "--memory-of", name]
        added_mb = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        wanted = f"   (wanted: at most {MOST_MB[name]:g})" if name in MOST_MB else ""
        print(f"added peak memory, {name:13} {added_mb:7.1f} MB{wanted}")
        met &= added_mb <= MOST_MB.get(name, added_mb)
    return int(not met)


def multiply_adds_per_pixel(name: str = "native") -> float:
    """Count the multiply-adds that one pixel needs in the network of an engine."""
    if name.endswith(_FAST):
        return FastLayout().multiplications
    convolutions = sum(int(np.prod(shape)) for shape in PARAMETERS.values() if len(shape) == 4)
    encoders, decoders = 2 * NUM_BLOCKS * DIM * (DIM // NUM_HEADS), NUM_BLOCKS * 2 * DIM * (2 * DIM // NUM_HEADS)
    return convolutions + encoders + decoders + 2 * DIM * (DIM // NUM_HEADS)


def _compare(others: list[str], turns: int, threads: int) -> bool:
    module, isa = native.load_module(), _isa()
    planes = _planes(SIZE_HW)
    # FLOP per CPU-second of the loop on one thread, FLOP per second of the loop on all of them.
    peaks, peaks_wall = [], []
    cpu_s: dict[str, list[float]] = {name: [] for name in (*OURS, *others)}
    wall_s: dict[str, list[float]] = {name: [] for name in cpu_s}
    engines = {name: _open(name, threads) for name in cpu_s}
    for engine in engines.values():
        engine.fuse(*planes)  # warm-up
    flop = 2 * threads * module.multiply_adds(isa, _ROUNDS)
    for _ in range(turns):
        peak_cpu_s, peak_wall_s = _times(lambda: _on_threads(threads, lambda: module.multiply_adds(isa, _ROUNDS)))
        peaks.append(flop / peak_cpu_s)
        peaks_wall.append(flop / peak_wall_s)
        for name, engine in engines.items():
            repeats = _REPEATS_FAST if name.endswith(_FAST) else 1
            taken_cpu_s, taken_wall_s = _times(
                lambda engine=engine, repeats=repeats: [engine.fuse(*planes) for _ in range(repeats)]
            )
            cpu_s[name].append(taken_cpu_s / repeats)
            wall_s[name].append(taken_wall_s / repeats)
    for engine in engines.values():
        engine.__exit__()
    peak = float(np.median(peaks))
    print(f"multiply-add peak ({isa}): {peak / 1e9:.1f} GFLOP per CPU-second, {np.median(peaks_wall) / 1e9:.1f} GFLOP/s")
    for name, times_s in cpu_s.items():
        print(
            f"{name:13} {SIZE_HW[1]}x{SIZE_HW[0]}: CPU median {np.median(times_s):.4f} s, least {min(times_s):.4f} s; "
            f"wall median {np.median(wall_s[name]):.4f} s, least {min(wall_s[name]):.4f} s"
        )
    met = True
    for name in OURS:
        work = 2 * multiply_adds_per_pixel(name) * SIZE_HW[0] * SIZE_HW[1]
        share, least = work / float(np.median(cpu_s[name])) / peak, LEAST_SHARE.get(isa, {}).get(name)
        wanted = "" if least is None else f"   (wanted: at least {100 * least:g} %)"
        print(f"{name} ({isa}): {100 * share:.1f} % of the multiply-add peak{wanted}")
        met &= least is None or share >= least
    ratio = _ratio(cpu_s, "native", "native fast")
    print(f"native fast against native ({isa}): {ratio:.2f} times less CPU time   (wanted: at least {LEAST_RATIO_FAST:g})")
    met &= ratio >= LEAST_RATIO_FAST
    halves = [name for name in cpu_s if name.endswith(_BF16)]
    for name in (name for name in others if name not in halves):
        ratio = _ratio(cpu_s, name, "native")
        lowest = LEAST_RATIO.get(isa, {}).get(name)
        wanted = "" if lowest is None else f"   (wanted: at least {lowest:g})"
        print(f"native ({isa}) against {name}: {ratio:.2f} times less CPU time{wanted}")
        met &= lowest is None or ratio >= lowest
    if halves:
        ours, *theirs = halves
        isa_bf16 = native.instruction_sets("bf16")[0]
        for name in ("native", *theirs):
            print(f"{ours} ({isa_bf16}) against {name}: {_ratio(cpu_s, name, ours):.2f} times less CPU time")
    return met


def _isa() -> str:
    """Name the instruction set that the engines of this process use in fp32."""
    return chosen_isa() or native.instruction_sets()[0]


def _ratio(cpu_s: dict[str, list[float]], slow: str, fast: str) -> float:
    return float(np.median(np.array(cpu_s[slow]) / np.array(cpu_s[fast])))


def _open(name: str, threads: int) -> Backend:
    if name.endswith(_FAST):
        return open_weights(_fast_state(), name.removesuffix(_FAST), RunOptions(threads))
    path = weights_path("ir_vis")
    state = read_checkpoint(path).state
    backend = name.removesuffix(_BF16)
    if backend == name:
        return open_weights(state, name, RunOptions(threads))
    data = path.read_bytes() if backend == "native" else make_model("cpu", "bf16", state).SerializeToString()
    return open_engine(backend, Engine(data, "bf16"), RunOptions(threads=threads))


def _fast_state() -> State:
    draw = np.random.default_rng(1)
    return {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in FastLayout().shapes.items()}


def _cost_per_pixel(name: str, turns: int) -> bool:
    images = {size_hw: _planes(size_hw) for size_hw in SIZES_HW}
    cpu_s: dict[tuple[int, int], list[float]] = {size_hw: [] for size_hw in SIZES_HW}
    with _open(name, threads=1) as engine:
        for _ in range(turns):
            for size_hw, planes in images.items():
                # Small images several times, so that the clock has something to measure; memory is there already.
                repeats = max(1, SIZE_HW[0] * SIZE_HW[1] // (size_hw[0] * size_hw[1]))
                engine.fuse(*planes)
                taken_s, _ = _times(lambda planes=planes, repeats=repeats: [engine.fuse(*planes) for _ in range(repeats)])
                cpu_s[size_hw].append(taken_s / repeats / (size_hw[0] * size_hw[1]))
    costs = {size_hw: float(np.median(times_s)) for size_hw, times_s in cpu_s.items()}
    print(f"{name} ({_isa()}), CPU time per pixel on one thread:")
    for (height, width), cost_s in costs.items():
        print(
            f"  {width:4}x{height:<4} {1e6 * cost_s:.4f} us, {cost_s / costs[SIZE_HW]:.3f} of that at {SIZE_HW[1]}x{SIZE_HW[0]}"
        )
    spread = max(costs.values()) / min(costs.values()) - 1
    print(f"  spread {100 * spread:.1f} %   (wanted: at most {100 * MOST_SPREAD:g} %)")
    return spread <= MOST_SPREAD


def _added_mb(name: str) -> float:
    with _open(name, threads=2) as engine:
        engine.fuse(*_planes((8, 8)))  # loads what is loaded late
        planes = _planes(SIZE_HW)
        gc.collect()
        before_kb = _peak_kb()
        engine.fuse(*planes)
        return (_peak_kb() - before_kb) * 1024 / 1e6


def _peak_kb() -> int:
    # Not getrusage: its peak is inherited from the process that started this one.
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak)


def _planes(size_hw: tuple[int, int]) -> tuple[Float32Array, Float32Array]:
    rng = np.random.default_rng(1)
    a, b = (rng.random((1, 1, *size_hw), np.float32) for _ in range(2))
    return a, b


def _on_threads(count: int, work: Callable[[], object]) -> None:
    workers = [threading.Thread(target=work) for _ in range(count - 1)]
    for worker in workers:
        worker.start()
    work()
    for worker in workers:
        worker.join()


def _times(work: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


if __name__ == "__main__":
    raise SystemExit(main())
