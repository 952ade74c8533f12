"""Time all metrics of the convention ``evaluator`` for one 640x480 triple on one core, against the plain formulas.

Run as ``python -m benchmarks.metrics`` from the repository's root; needs SciPy for the plain formulas. Both are timed in
turns, so that a busy machine slows both; the images are generated from a fixed seed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

# One core: these have to be set before the libraries are loaded.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cv2
import numpy as np

from benchmarks.plain_metrics import PLAIN
from refusion_edge.arrays import Uint8Array
from refusion_edge.metrics import metrics_of, score
from refusion_edge.metrics.planes import to_gray_plane

LIMIT_S, LEAST_RATIO = 0.35, 8.0


def main() -> int:
    """Print times and the ratio; returns 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="turns of both versions (default: 5)")
    repeats = parser.parse_args().repeats
    cv2.setNumThreads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    a, b, fused = _triple()
    planes = [to_gray_plane(image) for image in (a, b, fused)]
    metrics = metrics_of("evaluator")
    score(a, b, fused, metrics)  # warm-up

    fast_s, plain_s = [], []
    for _ in range(repeats):
        fast_s.append(_seconds(lambda: score(a, b, fused, metrics)))
        plain_s.append(_seconds(lambda: [PLAIN[m.name](*(planes[2:] if m.reads == "fused" else planes)) for m in metrics]))

    print(f"{len(metrics)} metrics of the convention evaluator, 640x480, one core, {repeats} turns, wall time (monotonic)")
    for name, times_s in (("refusion_edge.metrics", fast_s), ("plain 2-D formulas", plain_s)):
        print(f"{name:22} median {np.median(times_s):.3f} s   least {min(times_s):.3f} s   most {max(times_s):.3f} s")
    ratio = float(np.median(np.array(plain_s) / np.array(fast_s)))
    print(f"{'ratio':22} median {ratio:.1f}   (wanted: at least {LEAST_RATIO:g}, and at most {LIMIT_S:g} s)")
    for metric in metrics:
        taken_s = min(_seconds(lambda metric=metric: score(a, b, fused, [metric])) for _ in range(3))
        print(f"  {metric.label:22} {1e3 * taken_s:6.1f} ms")
    return int(ratio < LEAST_RATIO or float(np.median(fast_s)) > LIMIT_S)


def _triple() -> tuple[Uint8Array, Uint8Array, Uint8Array]:
    rng = np.random.default_rng(1)
    noise = [cv2.GaussianBlur(rng.standard_normal((480, 640)), (0, 0), sigma) for sigma in (1.0, 2.0)]
    a, b = (np.clip(128 + 40 * plane / plane.std(), 0, 255).astype(np.uint8) for plane in noise)
    return a, b, np.maximum(a, b)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
