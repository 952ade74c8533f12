"""Time a stream without the network, for one 640x480 pair on one core, and compare flicker with the per-frame stretch.

Run as ``python -m benchmarks.stream_cost`` from the repository's root. Two files of raw frames are written in advance, 16-bit
gray and YUYV as cameras send them; timed is the work for each pair: reading, freeze detection, pairing, motion, gain, warp of a
rig, color, output range, and writing to shared memory. The mean replaces the network. The limit applies to processor time,
because other programs may be running; wall time is printed as well. With ``dead row``, an infrared row has no value.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Iterator

# One core: these have to be set before the libraries are loaded.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import av
import cv2
import numpy as np

from benchmarks.mean_engine import MeanEngine
from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.machine import keep_freed_memory
from refusion_edge.metrics.temporal import flicker
from refusion_edge.rig.model import GAIN_METHODS, Rig, RigAlignment, RigSource, to_rows
from refusion_edge.rig.warp import make_warp
from refusion_edge.stream.frames import MS, SECOND, SIDES, Frame, Pair, Side
from refusion_edge.stream.outputs.sinks import SharedMemorySink
from refusion_edge.stream.pairing.failover import Failover, Limits
from refusion_edge.stream.pairing.freeze import FreezeWatch
from refusion_edge.stream.pairing.pairer import Pairer
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch
from refusion_edge.stream.processing.processor import Geometry, Processor
from refusion_edge.stream.run.pairing import MotionMeter
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.synthetic import Painter, Scene
from refusion_edge.stream.uri import parse_output, parse_source

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
    print(f"stream without the network, {WIDTH}x{HEIGHT}, 16-bit infrared, YUYV visible, one core, {pairs} pairs, 10 warm-up")
    missed = False
    for method in GAIN_METHODS:
        for rigged, dead in ((False, False), (True, False), (True, True)):
            cpu_ms, wall_ms = _cost(ThermalGain(method), pairs, rigged=rigged, dead=dead)
            name = f"{method}{', with a rig' if rigged else ''}{', dead row' if dead else ''}"
            print(
                f"{name:34} processor: median {np.median(cpu_ms):.2f} ms, p90 {np.percentile(cpu_ms, 90):.2f}, p99 "
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


def _cost(gain: ThermalGain, pairs: int, *, rigged: bool, dead: bool = False) -> tuple[list[float], list[float]]:
    with tempfile.TemporaryDirectory() as folder, SharedMemorySink(parse_output(f"shm://cost-{os.getpid()}")) as sink:
        files = {side: _write(f"{folder}/{side}.nut", side, dead=dead) for side in SIDES}
        return _timed(files, sink, gain, pairs, rigged=rigged)


def _timed(
    files: dict[Side, str], sink: SharedMemorySink, gain: ThermalGain, pairs: int, *, rigged: bool
) -> tuple[list[float], list[float]]:
    streams = {side: _images(path, side) for side, path in files.items()}
    processor = Processor(MeanEngine(), gain=gain, geometry=Geometry(make_warp(_rig()) if rigged else None))
    failover, freeze, motion = Failover(Pairer(), Limits()), FreezeWatch(), MotionMeter()
    cpu_ms, wall_ms = [], []
    for number in range(pairs + 10):
        time_ns = number * SECOND // 30
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for side, late_ns in (("ir", 0), ("vis", 2 * MS)):
            image = next(streams[side])
            since_ns = freeze.add(image, time_ns).since_ns if side == "ir" else time_ns
            frame = Frame(side, image, number, time_ns + late_ns, time_ns + late_ns, since_ns)
            for pair in failover.push(frame).pairs:
                if pair.number % _MOTION_EVERY < 2 and pair.vis is not None:
                    motion.add(pair.vis.image, pair.vis.time_ns)
                sink.write(processor.process(pair))
        if number >= 10:
            cpu_ms.append((time.process_time_ns() - cpu) / MS)
            wall_ms.append((time.perf_counter_ns() - wall) / MS)
    return cpu_ms, wall_ms


def _write(path: str, side: Side, *, dead: bool) -> str:
    """Write 20 raw frames as cameras send them."""
    painter = Painter(Scene(width=WIDTH, height=HEIGHT, scene="texture", pan=30), side)
    stored = "gray16le" if side == "ir" else "yuyv422"
    with av.open(path, "w") as file:
        stream = file.add_stream("rawvideo", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, stored
        for number in range(20):
            image = painter.paint(number * 33 * MS)
            if dead and side == "ir":
                image[HEIGHT // 3] = 0
            frame = av.VideoFrame.from_ndarray(image, format=stored if side == "ir" else "bgr24")
            file.mux(stream.encode(frame.reformat(format=stored)))
        file.mux(stream.encode())
    return path


def _images(path: str, side: Side) -> Iterator[Array]:
    """The frames of a file, again and again."""
    while True:
        with open_source(parse_source(path), side) as source:
            while (grab := source.read()) is not None:
                yield grab.image


def _rig() -> Rig:
    turned = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 1.5, 1.02)
    source = RigSource((WIDTH, HEIGHT))
    return Rig(source, source, (RigAlignment(None, to_rows(np.vstack((turned, [0, 0, 1])))),))


def _flicker(gain: ThermalGain, stretch: OutputStretch) -> float:
    scene = Scene(width=96, height=72, noise=3, scene="texture", walker=60, seed=3)
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
