"""Flicker of a stream with each network, on rendered scenes with sensor noise.

Run as ``python -m benchmarks.stream_flicker`` from the repository's root. The same frames pass through everything of
``stream`` but the cameras: gain, the network, and the smoothed output range. Scenes:

- ``static``: the rendered streets by day and night, with the noise of both sensors;
- ``moving``: a window that moves over them, by a fraction of a pixel per frame;
- ``dimming``: the static streets, while the visible camera darkens by a third and recovers, as at a change of exposure;
- ``walker``: ``test://``, a static scene into which a hot figure walks.

Printed is the mean flicker, in gray levels per frame, see ``refusion_edge.metrics.temporal``: what the fused frame changes
beyond both sources. ``fast, each frame alone`` adapts to the statistics of every frame, as back ends do that are not told
others. The goal is a flicker of ``fast`` not above that of ``refusion`` in any scene.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.fuser import load
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.metrics.planes import to_gray_plane
from refusion_edge.metrics.temporal import Triple, flicker
from refusion_edge.stream.frames import MS, Frame, Pair
from refusion_edge.stream.processing.adaptation import Adaptation
from refusion_edge.stream.processing.processor import Processor
from refusion_edge.stream.sources.synthetic import Painter, Scene

WIDTH, HEIGHT, PERIOD_NS = 320, 240, 1_000_000_000 // 30
# Infrared: counts per gray level of the rendered image, and above them. Noise: 5 counts, and 2 levels of the visible camera.
_COUNTS, _BASE, _NOISE_COUNTS, _NOISE_LEVELS = 8.0, 20_000.0, 5.0, 2.0
_SCENES = ("static day", "static night", "moving day", "moving night", "dimming day", "walker")
_CANDIDATES = {"refusion": ("refusion", 1.0), "fast": ("fast", 1.0), "fast, each frame alone": ("fast", 0.0)}

Sources = tuple[Array, Array, Array]
"""Counts of the infrared camera, (H, W) uint16; the same on a fixed scale, in [0, 255]; the visible frame, (H, W, 3) BGR."""


def main() -> int:
    """Print the table; returns 1 if ``fast`` flickers more than ``refusion`` in a scene."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=60, help="frames of each scene (default: 60)")
    parser.add_argument("--threads", type=int, default=0, help="threads of the back end (default: all)")
    options = parser.parse_args()
    print(f"{WIDTH}x{HEIGHT}, 30 frames per second, {options.frames} frames of each scene; gray levels per frame")
    print(f"{'scene':14}" + "".join(f"{name:>26}" for name in _CANDIDATES))
    missed = False
    for scene in _SCENES:
        found = {name: _flicker(scene, options.frames, options.threads, *what) for name, what in _CANDIDATES.items()}
        print(f"{scene:14}" + "".join(f"{value:26.3f}" for value in found.values()), flush=True)
        missed |= found["fast"] > found["refusion"]
    print("wanted: fast not above refusion in any scene")
    return int(missed)


def _flicker(scene: str, frames: int, threads: int, network: str, time_constant_s: float) -> float:
    with load("ir_vis", network=network, threads=threads) as fuser:
        processor = Processor(fuser.backend, adaptation=Adaptation(time_constant_s), marks=False)
        shown = [_shown(processor, number, sources) for number, sources in enumerate(_sources(scene, frames))]
    return float(np.mean([flicker(before, after) for before, after in itertools.pairwise(shown)]))


def _shown(processor: Processor, number: int, sources: Sources) -> Triple:
    counts, fixed, vis = sources
    time_ns = number * PERIOD_NS
    pair = Pair(number, Frame("ir", counts, 0, time_ns, 0, time_ns), Frame("vis", vis, 0, time_ns, 0, time_ns))
    fused = processor.process(pair).image
    return fixed, to_gray_plane(vis[..., ::-1]), to_gray_plane(fused[..., ::-1])


def _sources(scene: str, frames: int) -> Iterator[Sources]:
    if scene == "walker":
        yield from _walk(frames)
        return
    kind, name = scene.split()
    paths = next(paths for paths in sample_paths("ir_vis") if paths.name == {"day": "street", "night": "night"}[name])
    ir, vis = (read_image(path).astype(np.float32) for path in (paths.a, paths.b))
    rng = np.random.default_rng(1)
    for number in range(frames):
        left, top = (7.3 + 0.37 * number, 5.1 + 0.21 * number) if kind == "moving" else (7.0, 5.0)
        darker = 1 - (np.sin(np.pi * number / frames) / 3 if kind == "dimming" else 0)
        heat, light = (_window(image, left, top) for image in (ir, vis))
        counts = (_BASE + _COUNTS * heat + rng.normal(0, _NOISE_COUNTS, heat.shape)).round().astype(np.uint16)
        visible = (light * darker + rng.normal(0, _NOISE_LEVELS, light.shape)).round().clip(0, 255).astype(np.uint8)
        fixed = ((counts - _BASE) / _COUNTS).clip(0, 255)
        yield counts, fixed, np.ascontiguousarray(visible[..., ::-1])


def _window(image: Float32Array, left: float, top: float) -> Float32Array:
    place = np.array([[1, 0, left], [0, 1, top]], np.float32)
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, place, (WIDTH, HEIGHT), flags=how, borderMode=cv2.BORDER_REPLICATE), np.float32)


def _walk(frames: int) -> Iterator[Sources]:
    painters = [Painter(Scene(width=WIDTH, height=HEIGHT, noise=3, walker=120, seed=3), side) for side in ("ir", "vis")]
    for number in range(frames):
        counts, vis = (painter.paint(number * PERIOD_NS + 500 * MS) for painter in painters)
        # A fixed scale that shows its background at full contrast.
        fixed = ((counts.astype(np.float64) - 20_950) * (255 / 700)).clip(0, 255)
        shown: Uint8Array = vis
        yield counts, fixed, shown


if __name__ == "__main__":
    raise SystemExit(main())
