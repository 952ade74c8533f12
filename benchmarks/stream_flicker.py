"""Flicker of a stream with each network, on rendered scenes with sensor noise, and on real pairs.

Run as ``python -m benchmarks.stream_flicker [--pair INFRARED VISIBLE ...]`` from the repository's root.
The same frames pass through everything of ``stream`` but the cameras: gain, the network, and the output range. Scenes:

- ``static``: the rendered streets by day and night, with the noise of both sensors;
- ``moving``: a window that moves over them, by a fraction of a pixel per frame;
- ``dimming``: the static streets, while the visible camera darkens by a third and recovers, as at a change of exposure;
- ``faint``: the static streets at a sixth of their contrast, as in fog, so that noise is all that a range could stretch;
- ``glint``: the moving window, and the sun in a puddle in four frames out of twelve;
- ``hot``: the moving window, through which the hottest object comes and goes;
- ``walker``: ``test://`` with ``scene=texture``, a static scene into which a hot figure walks.

With ``--pair``, the scenes but ``walker`` are windows of that pair, resized to 1.5 times the size of a frame.

Printed is the mean flicker, in gray levels per frame, see ``refusion_edge.metrics.temporal``: what the fused frame changes
beyond both sources. ``fast, each frame alone`` adapts to the statistics of every frame, as back ends do that are not told
others. The goal is a flicker of ``fast`` not above that of ``refusion`` in any scene.

``--tables`` chooses tables, by default the first two:

- ``flicker``: the one above.
- ``ranges``: the output range ``smooth`` beside ``fixed``: pumping and grain of the same frames. ``held`` is ``smooth`` with
  the range of the first frame throughout: what it pumps comes from its gain, and what ``smooth`` pumps beyond it, from the
  motion of the range. The goals: pumping at most 1.2 times that of ``fixed``, beyond a tenth of a level, in every scene, and
  grain at most 1.2 times that of ``fixed`` in the faint ones.
- ``variants``: pumping with other time constants and limits of gain of ``smooth``, what is left of its contrast, and how long
  it takes to follow a scene whose contrast doubles, or halves.
- ``noise``: the temporal noise of static scenes, as a share of that of the noisier source. The noise of a sequence is the
  standard deviation of a pixel over time, as the root of the mean square over all pixels, in gray levels; that of a source is
  that of its luma as the network gets it, after the gain control. ``average`` and ``max`` are those of the two planes, and
  ``linear`` is what the network makes of noise that is ten times weaker, times ten. The goal: not above 1.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.fuser import load
from refusion_edge.images.color import split_uint8
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.metrics import metrics_of
from refusion_edge.metrics.planes import to_gray_plane
from refusion_edge.metrics.temporal import Triple
from refusion_edge.stream.frames import MS, SECOND, Frame, Pair
from refusion_edge.stream.processing.adaptation import Adaptation
from refusion_edge.stream.processing.output_range import OutputStretch
from refusion_edge.stream.processing.processor import Processor
from refusion_edge.stream.sources.synthetic import Painter, Scene

WIDTH, HEIGHT, PERIOD_NS = 320, 240, 1_000_000_000 // 30
# Infrared: counts per gray level of the rendered image, and above them. Noise: 5 counts, and 2 levels of the visible camera.
_COUNTS, _BASE, _NOISE_COUNTS, _NOISE_LEVELS = 8.0, 20_000.0, 5.0, 2.0
_KINDS = ("static", "moving", "dimming", "faint", "glint", "hot")
_SCENES = (*(f"{kind} {light}" for kind in _KINDS for light in ("day", "night")), "walker")
_CANDIDATES = {"refusion": ("refusion", 1.0), "fast": ("fast", 1.0), "fast, each frame alone": ("fast", 0.0)}
_RATIO, _TRIFLE_LEVELS = 1.2, 0.1
_TABLES = ("flicker", "ranges", "variants", "noise")
# Of the table ``noise``: scenes, and noise of the infrared camera in counts, and of the visible one in levels.
_STILL = ("static", "faint", "covered")
_NOISES = {"infrared": (24.0, 0.0), "visible": (0.0, 3.0), "both": (24.0, 3.0), "both, weak": (6.0, 0.75)}
_WEAKER, _DRAWS = 0.1, 8

Sources = tuple[Array, Array, Array]
"""Counts of the infrared camera, (H, W) uint16; the same on a fixed scale, in [0, 255]; the visible frame, (H, W, 3) BGR."""


def main() -> int:
    """Print the tables; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=60, help="frames of each scene (default: 60)")
    parser.add_argument("--threads", type=int, default=0, help="threads of the back end (default: all)")
    parser.add_argument(
        "--pair", nargs=2, action="append", metavar="FILE", help="a real pair instead of the streets; repeatable"
    )
    parser.add_argument("--scenes", nargs="+", metavar="NAME", help="only scenes whose name begins like this")
    parser.add_argument("--networks", nargs="+", default=["refusion", "fast"], help="networks of all tables but the first")
    parser.add_argument("--tables", nargs="+", choices=_TABLES, default=_TABLES[:2], help="which tables to print")
    options = parser.parse_args()
    print(f"{WIDTH}x{HEIGHT}, 30 frames per second, {options.frames} frames of each scene; gray levels per frame")
    scenes = [f"{kind} {index}" for kind in _KINDS for index in range(len(options.pair or ()))] or _SCENES
    pairs = [(Path(a), Path(b)) for a, b in options.pair or ()]
    scenes = [scene for scene in scenes if not options.scenes or scene.startswith(tuple(options.scenes))]
    missed = False
    if "flicker" in options.tables:
        print(f"{'scene':14}" + "".join(f"{name:>26}" for name in _CANDIDATES))
        for scene in scenes:
            sources = list(_sources(scene, options.frames, pairs))
            found = {
                name: _means(sources, _fused(sources, options.threads, *what).shown["smooth"])["Flicker"]
                for name, what in _CANDIDATES.items()
            }
            print(f"{scene:14}" + "".join(f"{value:26.3f}" for value in found.values()), flush=True)
            missed |= found["fast"] > found["refusion"]
        print("wanted: fast not above refusion in any scene")
    for network in options.networks:
        if "ranges" in options.tables:
            missed |= _compare_ranges(network, scenes, options.frames, options.threads, pairs)
        if "variants" in options.tables:
            _compare_variants(network, scenes, options.frames, options.threads, pairs)
        if "noise" in options.tables:
            names = [str(index) for index in range(len(pairs))] or ["day", "night"]
            still = [f"{kind} {name}" for kind in _STILL for name in names]
            still = [scene for scene in still if not options.scenes or scene.startswith(tuple(options.scenes))]
            missed |= _measure_noise(network, still, options.frames, options.threads, pairs)
    return int(missed)


def _compare_ranges(network: str, scenes: Sequence[str], frames: int, threads: int, pairs: Sequence[tuple[Path, Path]]) -> bool:
    print(f"\n{network:14}{'pumping, smooth':>18}{'held':>8}{'fixed':>8}{'grain, smooth':>18}{'fixed':>8}{'ratio':>8}")
    missed = False
    for scene in scenes:
        sources = list(_sources(scene, frames, pairs))
        smooth, held, fixed = (_means(sources, shown) for shown in _fused(sources, threads, network).shown.values())
        ratio = smooth["Grain"] / max(fixed["Grain"], 1e-9)
        pumps = smooth["Pumping"] > max(_RATIO * fixed["Pumping"], _TRIFLE_LEVELS)
        grainy = scene.startswith("faint") and ratio > _RATIO
        missed |= pumps or grainy
        print(
            f"{scene:14}{smooth['Pumping']:18.3f}{held['Pumping']:8.3f}{fixed['Pumping']:8.3f}{smooth['Grain']:18.3f}"
            f"{fixed['Grain']:8.3f}{ratio:8.2f}{'  pumps' if pumps else ''}{'  grainy' if grainy else ''}",
            flush=True,
        )
    return missed


class _Capped(OutputStretch):
    """The range ``smooth`` with another limit of gain."""

    def __init__(self, most: float, time_constant_s: float = 1.0) -> None:
        super().__init__(time_constant_s=time_constant_s)
        self._most = most

    def _max_gain(self, fused: Float32Array, contrast: float, time_ns: int) -> float:
        return min(self._most, super()._max_gain(fused, contrast, time_ns))


_VARIANTS: dict[str, Callable[[], OutputStretch]] = {
    "fixed": partial(OutputStretch, "fixed"),
    "smooth": OutputStretch,
    "held": partial(OutputStretch, time_constant_s=math.inf),
    **{f"{seconds:g} s": partial(OutputStretch, time_constant_s=seconds) for seconds in (0.1, 0.3, 3.0, 10.0)},
    **{f"gain up to {most:g}": partial(_Capped, most) for most in (2.0, 1.5, 1.2, 1.07)},
}


def _compare_variants(
    network: str, scenes: Sequence[str], frames: int, threads: int, pairs: Sequence[tuple[Path, Path]]
) -> None:
    """Print pumping by variant and scene; contrast is that of the shown frames over that of ``fixed``."""
    pumped: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    contrasts: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    for scene in scenes:
        sources = list(_sources(scene, frames, pairs))
        planes = _fused(sources, threads, network).planes
        for name, make in _VARIANTS.items():
            stretch = make()
            shown = [stretch.apply(plane, number * PERIOD_NS).astype(np.float64) for number, plane in enumerate(planes)]
            pumped[name].append(_means(sources, shown)["Pumping"])
            contrasts[name].append(float(np.mean([plane.std() for plane in shown])))
    print(f"\n{network:14}" + "".join(f"{scene:>14}" for scene in scenes) + f"{'contrast':>10}{'widens':>10}{'narrows':>10}")
    for name, make in _VARIANTS.items():
        contrast = float(np.mean(np.divide(contrasts[name], contrasts["fixed"])))
        times = "".join(f"{_following_s(make(), *ends):9.1f}s" for ends in ((0.4, 0.8), (0.8, 0.4)))
        print(f"{name:14}" + "".join(f"{value:14.3f}" for value in pumped[name]) + f"{contrast:10.2f}{times}", flush=True)


def _following_s(stretch: OutputStretch, before: float, after: float) -> float:
    """Seconds until a scene whose contrast changes is shown within 5 % of the full range of how it is shown after a minute."""
    scenes = [0.1 + width * np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64) for width in (before, after)]
    shown = [
        stretch.apply(scenes[number > 0], number * PERIOD_NS).astype(np.float64) for number in range(60 * SECOND // PERIOD_NS)
    ]
    late = [number for number, levels in enumerate(shown) if np.abs(levels - shown[-1]).max() > 0.05 * 255]
    return max(late, default=0) * PERIOD_NS / SECOND


def _measure_noise(network: str, scenes: Sequence[str], frames: int, threads: int, pairs: Sequence[tuple[Path, Path]]) -> bool:
    columns = ("infrared", "visible", "smooth", "fixed", "linear", "average", "max")
    print(f"\n{network:14}{'noise of':>12}" + "".join(f"{name:>10}" for name in columns))
    missed = False
    for scene, (noisy, noise) in itertools.product(scenes, _NOISES.items()):
        fused = _fused(_sources(scene, frames, pairs, noise), threads, network)
        a, b = (np.stack(planes) for planes in fused.lumas)
        of_sources = [_noise(a), _noise(b)]
        found = {name: _noise(np.stack(fused.shown[name])) for name in ("smooth", "fixed")}
        found |= {
            "linear": _linear_noise(network, threads, a, b),
            "average": _noise((a + b) / 2),
            "max": _noise(np.maximum(a, b)),
        }
        shares = {name: value / max(of_sources) for name, value in found.items()}
        missed |= shares["smooth"] > 1
        print(
            f"{scene:14}{noisy:>12}" + "".join(f"{value:10.2f}" for value in (*of_sources, *shares.values()))
            + ("  above" if shares["smooth"] > 1 else ""),
            flush=True,
        )  # fmt: skip
    return missed


def _noise(levels: Array) -> float:
    """Temporal noise of a sequence, (T, H, W)."""
    return float(np.sqrt(levels.var(axis=0, ddof=1).mean()))


def _linear_noise(network: str, threads: int, a: Array, b: Array) -> float:
    """What is left of the noise of both sources, (T, H, W), in the network's output if all of it is a tenth as strong."""
    middle = [plane.mean(axis=0) for plane in (a, b)]
    deviations = [plane.std(axis=0, ddof=1) for plane in (a, b)]
    rng = np.random.default_rng(2)
    with load("ir_vis", network=network, threads=threads) as fuser:
        shown = []
        for _ in range(_DRAWS):
            noisy = (
                mean + _WEAKER * deviation * rng.standard_normal(mean.shape)
                for mean, deviation in zip(middle, deviations, strict=True)
            )
            planes = (np.ascontiguousarray(plane[None, None] / 255, np.float32) for plane in noisy)
            shown.append(255 * fuser.backend.fuse(*planes)[0, 0].astype(np.float64))
    return _noise(np.stack(shown)) / _WEAKER


class _Ranges(OutputStretch):
    """The range ``smooth``, and beside it what the other ranges make of the same frames.

    Attributes:
        shown: Luma levels of every frame by range: ``smooth``, ``held``, ``fixed``.
        planes: The frames before that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._others = {"held": OutputStretch(time_constant_s=math.inf), "fixed": OutputStretch("fixed")}
        self.shown: dict[str, list[Array]] = {"smooth": [], "held": [], "fixed": []}
        self.planes: list[Float32Array] = []

    def apply(self, fused: Float32Array, time_ns: int) -> Uint8Array:
        """Convert a frame as ``smooth`` does."""
        self.planes.append(fused.copy())
        smooth = super().apply(fused, time_ns)
        self.shown["smooth"].append(smooth.astype(np.float64))
        for name, other in self._others.items():
            self.shown[name].append(other.apply(fused, time_ns).astype(np.float64))
        return smooth


@dataclass(frozen=True, slots=True)
class _Fused:
    """A sequence after the network.

    Attributes:
        shown: Luma levels of every frame by range, see ``_Ranges``.
        planes: The network's output for every frame, (H, W).
        lumas: Luma levels of both sources for every frame as the network gets them, infrared first.
    """

    shown: dict[str, list[Array]]
    planes: list[Float32Array]
    lumas: tuple[list[Array], list[Array]]


def _fused(sources: Iterable[Sources], threads: int, network: str, time_constant_s: float = 1.0) -> _Fused:
    ranges = _Ranges()
    lumas: tuple[list[Array], list[Array]] = ([], [])
    with load("ir_vis", network=network, threads=threads) as fuser:
        processor = Processor(fuser.backend, stretch=ranges, adaptation=Adaptation(time_constant_s), marks=False)
        for number, (counts, _, vis) in enumerate(sources):
            time_ns = number * PERIOD_NS
            pair = Pair(number, Frame("ir", counts, 0, time_ns, 0, time_ns), Frame("vis", vis, 0, time_ns, 0, time_ns))
            frame = processor.process(pair)
            assert frame.ir is not None
            lumas[0].append(255 * frame.ir.astype(np.float64))
            lumas[1].append(split_uint8(vis, "bgr")[0].astype(np.float64))
    return _Fused(ranges.shown, ranges.planes, lumas)


def _means(sources: Iterable[Sources], fused: Iterable[Array]) -> dict[str, float]:
    """Mean of every metric over time."""
    moments: list[Triple] = [
        (fixed, to_gray_plane(vis[..., ::-1]), plane) for (_, fixed, vis), plane in zip(sources, fused, strict=True)
    ]
    transitions = list(itertools.pairwise(moments))
    return {
        metric.name: float(np.mean([metric.function(before, after) for before, after in transitions]))
        for metric in metrics_of("sequence")
    }


def _sources(
    scene: str,
    frames: int,
    pairs: Sequence[tuple[Path, Path]],
    noise: tuple[float, float] = (_NOISE_COUNTS, _NOISE_LEVELS),
) -> Iterator[Sources]:
    if scene == "walker":
        yield from _walk(frames)
        return
    kind, name = scene.split()
    ir, vis = _pictures(name, pairs)
    rng = np.random.default_rng(1)
    contrast = 1 / 6 if kind == "faint" else 1.0
    for number in range(frames):
        moves = kind in ("moving", "glint", "hot")
        left, top = (7.3 + 0.37 * number, 5.1 + 0.21 * number) if moves else (7.0, 5.0)
        darker = 1 - (np.sin(np.pi * number / frames) / 3 if kind == "dimming" else 0)
        heat, light = (contrast * _window(image, left, top) + (1 - contrast) * 110 for image in (ir, vis))
        if kind == "covered":
            heat = np.full_like(heat, 110)
        if kind == "glint" and number % 12 < 4:
            light = cv2.circle(light.copy(), (WIDTH // 3, HEIGHT // 2), 6, (255.0, 255.0, 255.0), cv2.FILLED)
        if kind == "hot" and number % 40 >= 20:
            heat = cv2.ellipse(heat.copy(), (10 + 8 * (number % 40), 140), (9, 24), 0, 0, 360, 320.0, cv2.FILLED)
        counts = (_BASE + _COUNTS * heat + rng.normal(0, noise[0], heat.shape)).round().astype(np.uint16)
        visible = (light * darker + rng.normal(0, noise[1], light.shape)).round().clip(0, 255).astype(np.uint8)
        # In fog the scale of the sensor is that of the clear scene; gain control is not what is measured here.
        fixed = ((counts - _BASE) / _COUNTS).clip(0, 255)
        yield counts, fixed, np.ascontiguousarray(visible[..., ::-1])


def _pictures(name: str, pairs: Sequence[tuple[Path, Path]]) -> tuple[Float32Array, Float32Array]:
    """Infrared, (H, W), and visible, (H, W, 3), levels."""
    if pairs:
        a, b = pairs[int(name)]
        size = (WIDTH * 3 // 2, HEIGHT * 3 // 2)
        ir, vis = (cv2.resize(read_image(path), size, interpolation=cv2.INTER_AREA).astype(np.float32) for path in (a, b))
        ir = to_gray_plane(ir / 255).astype(np.float32)
        return ir, vis if vis.ndim == 3 else np.repeat(vis[..., None], 3, axis=2)
    paths = next(paths for paths in sample_paths("ir_vis") if paths.name == {"day": "street", "night": "night"}[name])
    ir, vis = (read_image(path).astype(np.float32) for path in (paths.a, paths.b))
    return ir, vis


def _window(image: Float32Array, left: float, top: float) -> Float32Array:
    place = np.array([[1, 0, left], [0, 1, top]], np.float32)
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, place, (WIDTH, HEIGHT), flags=how, borderMode=cv2.BORDER_REPLICATE), np.float32)


def _walk(frames: int) -> Iterator[Sources]:
    scene = Scene(width=WIDTH, height=HEIGHT, noise=3, scene="texture", walker=120, seed=3)
    painters = [Painter(scene, side) for side in ("ir", "vis")]
    for number in range(frames):
        counts, vis = (painter.paint(number * PERIOD_NS + 500 * MS) for painter in painters)
        # A fixed scale that shows its background at full contrast.
        fixed = ((counts.astype(np.float64) - 20_950) * (255 / 700)).clip(0, 255)
        shown: Uint8Array = vis
        yield counts, fixed, shown


if __name__ == "__main__":
    raise SystemExit(main())
