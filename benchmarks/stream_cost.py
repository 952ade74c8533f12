"""Time a stream without the network, for one 640x480 pair on one core, and compare flicker with the per-frame stretch.

Run as ``python -m benchmarks.stream_cost`` from the repository's root. Frames are made in advance; timed is the work for each
pair: pairing, freeze detection, motion, gain, warp of a rig, color, output range, and a null output. The mean replaces the
network. The limit applies to processor time, because other programs may be running; wall time is printed as well.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time

# One core: these have to be set before the libraries are loaded.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cv2
import numpy as np

from benchmarks.mean_engine import MeanEngine
from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.machine import keep_freed_memory
from refusion_edge.metrics.temporal import flicker
from refusion_edge.rig.model import GAIN_METHODS, Rig, RigAlignment, RigSource, to_rows
from refusion_edge.rig.warp import make_warp
from refusion_edge.stream.frames import MS, SECOND, Frame, Pair
from refusion_edge.stream.pairing.failover import Failover, Limits
from refusion_edge.stream.pairing.freeze import FreezeWatch
from refusion_edge.stream.pairing.pairer import Pairer
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch
from refusion_edge.stream.processing.processor import Geometry, Processor
from refusion_edge.stream.run.pairing import MotionMeter
from refusion_edge.stream.sources.synthetic import Painter, Scene

LIMIT_MS = 4.0
WIDTH, HEIGHT = 640, 480
_MOTION_EVERY = 10


def main() -> int:
    """Print times per pair and flicker ratios; returns 1 if one of them costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=150, help="timed pairs (default: 150)")
    pairs = parser.parse_args().pairs
    keep_freed_memory()  # as the command does
    cv2.setNumThreads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"stream without the network, {WIDTH}x{HEIGHT}, 16-bit infrared, BGR visible, one core, {pairs} pairs, 10 warm-up")
    missed = False
    for method in GAIN_METHODS:
        for rigged in (False, True):
            cpu_ms, wall_ms = _cost(ThermalGain(method), pairs, rigged=rigged)
            name = f"{method}{', with a rig' if rigged else ''}"
            print(
                f"{name:24} processor: median {np.median(cpu_ms):.2f} ms, p90 {np.percentile(cpu_ms, 90):.2f}, p99 "
                f"{np.percentile(cpu_ms, 99):.2f}; wall: median {np.median(wall_ms):.2f}"
            )
            missed |= float(np.median(cpu_ms)) > LIMIT_MS
    print(f"wanted: a median of at most {LIMIT_MS:g} ms for each")
    print("flicker of a static noisy scene with a walking hot object, network replaced by the mean, 96x72 at 25/s, 120 frames:")
    per_frame = _flicker(ThermalGain("linear", time_constant_s=0), OutputStretch("stretch"))
    print(f"{'per-frame min-max':24} {per_frame:.3f} levels per frame")
    for method in GAIN_METHODS:
        smooth = _flicker(ThermalGain(method), OutputStretch())
        print(f"{method:24} {smooth:.3f} levels per frame, {smooth / per_frame:.2f} of per-frame")
    return int(missed)


def _cost(gain: ThermalGain, pairs: int, *, rigged: bool) -> tuple[list[float], list[float]]:
    frames = _frames()
    processor = Processor(MeanEngine(), gain=gain, geometry=Geometry(make_warp(_rig()) if rigged else None))
    failover, freeze, motion = Failover(Pairer(), Limits()), FreezeWatch(), MotionMeter()
    cpu_ms, wall_ms = [], []
    for number in range(pairs + 10):
        ir, vis = frames[number % len(frames)]
        time_ns = number * SECOND // 30
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for side, image, late_ns in (("ir", ir, 0), ("vis", vis, 2 * MS)):
            since_ns = freeze.add(image, time_ns).since_ns if side == "ir" else time_ns
            frame = Frame("ir" if side == "ir" else "vis", image, number, time_ns + late_ns, time_ns + late_ns, since_ns)
            for pair in failover.push(frame).pairs:
                if pair.number % _MOTION_EVERY < 2 and pair.vis is not None:
                    motion.add(pair.vis.image, pair.vis.time_ns)
                processor.process(pair)
        if number >= 10:
            cpu_ms.append((time.process_time_ns() - cpu) / MS)
            wall_ms.append((time.perf_counter_ns() - wall) / MS)
    return cpu_ms, wall_ms


def _frames() -> list[tuple[Array, Array]]:
    scene = Scene(width=WIDTH, height=HEIGHT, pan=30)
    painters = Painter(scene, "ir"), Painter(scene, "vis")
    return [(painters[0].paint(number * 33 * MS), painters[1].paint(number * 33 * MS)) for number in range(20)]


def _rig() -> Rig:
    turned = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 1.5, 1.02)
    source = RigSource((WIDTH, HEIGHT))
    return Rig(source, source, (RigAlignment(None, to_rows(np.vstack((turned, [0, 0, 1])))),))


def _flicker(gain: ThermalGain, stretch: OutputStretch) -> float:
    scene = Scene(width=96, height=72, noise=3, walker=60, seed=3)
    painters = Painter(scene, "ir"), Painter(scene, "vis")
    processor = Processor(MeanEngine(), gain=gain, stretch=stretch, color=False, marks=False)
    planes: list[tuple[Array, Array, Array]] = []
    for number in range(120):
        time_ns = number * 40 * MS
        ir, vis = (painter.paint(time_ns) for painter in painters)
        pair = Pair(number, Frame("ir", ir, 0, time_ns, 0, time_ns), Frame("vis", vis, 0, time_ns, 0, time_ns))
        shown: Uint8Array = processor.process(pair).image
        # The infrared camera on a fixed scale that shows its background at full contrast.
        fixed = ((ir.astype(np.float64) - 20_950) * (255 / 700)).clip(0, 255)
        planes.append((fixed, vis[..., 1].astype(np.float64), shown.astype(np.float64)))
    return float(np.mean([flicker(before, after) for before, after in itertools.pairwise(planes)]))


if __name__ == "__main__":
    raise SystemExit(main())
