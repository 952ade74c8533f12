"""From a pair of frames to a fused frame: gain, warp and color around the network."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.backends.finisher import Finisher
from refusion_edge.backends.registry import AdaptedBackend, Backend
from refusion_edge.errors import ShapeError
from refusion_edge.images.color import split_uint8
from refusion_edge.rig.warp import RigWarp
from refusion_edge.sizes import MIN_SIDE
from refusion_edge.stream.frames import Frame, FusedFrame, Mode, Pair
from refusion_edge.stream.processing.adaptation import Adaptation
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch

# Content that has not changed for longer than two frames of a slow camera is marked.
_FROZEN_MARK_NS = 250_000_000
_MARK_COLOR, _MARK_SHADOW = (0, 220, 255), (0, 0, 0)

Timer = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the two views are brought to one size.

    Attributes:
        warp: Warp of the rig, or None.
        resize: Whether to resize an infrared image to the visible size if there is no rig.
    """

    warp: RigWarp | None = None
    resize: bool = False


class Processor:
    """Fuses pairs of frames. Use each instance from one thread; it owns the state that is smoothed over time.

    The visible image stays in uint8: its luma is fused, its chroma bypasses the network. One table maps infrared counts to
    float32 luma, so that the network gets their full depth.

    Args:
        backend: Runs the network; owned by the caller.
        gain: Thermal gain control.
        stretch: Output range.
        adaptation: Statistics over time, for a network and a back end that adapt to them; others do without.
        geometry: How the two views are brought to one size.
        color: Whether the fused image keeps the color of the visible one.
        marks: Whether frozen, held and missing cameras are marked in the image.
        took: Called with the name and the duration in ns of each stage.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        gain: ThermalGain | None = None,
        stretch: OutputStretch | None = None,
        adaptation: Adaptation | None = None,
        geometry: Geometry | None = None,
        color: bool = True,
        marks: bool = True,
        took: Timer = lambda _stage, _elapsed_ns: None,
    ) -> None:
        self.gain = gain or ThermalGain()
        self._stretch = stretch or OutputStretch()
        self._adaptation = adaptation or Adaptation()
        self._adapted_to: object = None
        self._use(backend)
        self._geometry = geometry or Geometry()
        self._color = color
        self._marks = marks
        self._took = took
        self._size_wh: tuple[int, int] | None = None
        # Of the first warp: gain starts anew when the part that it is measured on changes, and refinement moves a view little.
        self._first_warp = self._geometry.warp

    @property
    def first_warp(self) -> RigWarp | None:
        """The warp at the start of the run, whose used parts of the frames everything is measured on; None without a rig."""
        return self._first_warp

    def use_warp(self, warp: RigWarp) -> None:
        """Set the warp of the next frames; call it between two frames, from the thread that processes them."""
        self._geometry = replace(self._geometry, warp=warp)

    def use_backend(self, backend: Backend) -> None:
        """Run the next frames on another back end or with another network; call it between two frames, from their thread."""
        self._adaptation.reset()
        self._use(backend)

    def _use(self, backend: Backend) -> None:
        self._finisher = Finisher(backend, self._stretch.kind, "bgr")
        self._adapted = backend if isinstance(backend, AdaptedBackend) and backend.adapts else None

    def process(self, pair: Pair) -> FusedFrame:
        """Fuse a pair, or pass on the only frame of it.

        Raises:
            ShapeError: The two sizes differ, with neither a rig nor ``resize``; or the frames are too small.
            InputError: The infrared image holds NaN or infinities.
            GateError: The network's output is not finite.
        """
        started_ns = time.perf_counter_ns()
        ir = None if pair.ir is None else self._infrared(pair.ir)
        vis = None if pair.vis is None else self._visible(pair.vis)
        ir, vis = self._to_one_size(ir, vis)
        mode: Mode
        if ir is None or vis is None:
            mode = "infrared only" if vis is None else "visible only"
            self._adaptation.reset()
            image = _levels(ir) if ir is not None else vis
            assert image is not None
            self._took("preprocess", time.perf_counter_ns() - started_ns)
        else:
            mode = "fused"
            self._follow_cameras(pair)
            image = self._fuse(ir, vis, pair.newest.time_ns, started_ns)
        if self._color and image.ndim == 2 and mode == "infrared only":
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR).astype(np.uint8, copy=False)
        elif not self._color and image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.uint8, copy=False)
        marks = _marks(pair)
        if marks and self._marks:
            image = _write_marks(image, marks)
        newest = pair.newest
        return FusedFrame(
            image, ir, vis, pair.number, newest.time_ns, newest.arrived_ns, mode, marks, pair.skew_ns
        )  # fmt: skip

    def _fuse(self, ir: Float32Array, vis: Uint8Array, time_ns: int, started_ns: int) -> Uint8Array:
        gray, ycrcb = split_uint8(vis, "bgr")
        luma: Array = gray if self._finisher.takes_uint8 else gray * np.float32(1 / 255)
        prepared_ns = time.perf_counter_ns()
        self._took("preprocess", prepared_ns - started_ns)
        output = self._infer(ir[None, None], luma[None, None], time_ns)
        inferred_ns = time.perf_counter_ns()
        self._took("infer", inferred_ns - prepared_ns)
        warp, stretch = self._geometry.warp, partial(self._stretch.apply, time_ns=time_ns)
        # Outside the view of the other camera, the visible luma is shown.
        beside = None if warp is None else (gray, ~warp.mask)
        image = self._finisher.finish(output, ycrcb if self._color else None, stretch, beside=beside)
        self._took("postprocess", time.perf_counter_ns() - inferred_ns)
        return image

    def _infer(self, a: Float32Array, b: Array, time_ns: int) -> Float32Array | Uint8Array:
        if self._adapted is None:
            return self._finisher.infer(a, b)
        return self._adapted.fuse_adapted(a, b, self._adaptation.update(self._adapted.statistics(a, b), time_ns))

    def _follow_cameras(self, pair: Pair) -> None:
        """Forget the statistics of frames that a camera took at another size, or stamped with another clock."""
        taken = [(frame.size_wh, frame.epoch) for frame in (pair.ir, pair.vis) if frame is not None]
        if taken != self._adapted_to:
            self._adaptation.reset()
            self._adapted_to = taken

    def _infrared(self, frame: Frame) -> Float32Array:
        warp = self._geometry.warp
        used = frame.image if self._first_warp is None else self._first_warp.ir.used(frame.image)
        self.gain.update(used, frame.time_ns)
        # Warping float32 luma is faster than warping counts.
        luma = self.gain.apply(used)
        if self._first_warp is not None and used.shape != frame.image.shape:
            whole = np.zeros(frame.image.shape[:2], np.float32)
            self._first_warp.ir.used(whole)[...] = luma
            luma = whole
        return luma if warp is None else warp.ir.apply(luma).astype(np.float32, copy=False)

    def _visible(self, frame: Frame) -> Uint8Array:
        warp = self._geometry.warp
        image = frame.image if warp is None else warp.vis.apply(frame.image)
        if image.dtype == np.uint8:
            levels: Uint8Array = image
            return levels
        white = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
        scaled: Uint8Array = np.rint((image.astype(np.float32) * np.float32(255 / white)).clip(0, 255)).astype(np.uint8)
        return scaled

    def _to_one_size(self, ir: Float32Array | None, vis: Uint8Array | None) -> tuple[Float32Array | None, Uint8Array | None]:
        """Keep the size of the first pair for the whole run, even if a camera changes its size later."""
        if self._size_wh is None:
            first: Array | None = vis if vis is not None else ir
            assert first is not None
            if ir is not None and vis is not None and ir.shape[:2] != vis.shape[:2] and not self._geometry.resize:
                raise ShapeError(
                    f"the cameras differ in size: infrared {ir.shape[1]}x{ir.shape[0]}, visible {vis.shape[1]}x{vis.shape[0]}",
                    "give --rig (see 'refusion-edge align'), or --resize if both have the same view",
                    expected=vis.shape[:2],
                    got=ir.shape[:2],
                )
            if min(first.shape[:2]) < MIN_SIDE:
                raise ShapeError(
                    f"frames of {first.shape[1]}x{first.shape[0]} are too small",
                    f"use cameras of at least {MIN_SIDE}x{MIN_SIDE}",
                    expected=(MIN_SIDE, MIN_SIDE),
                    got=first.shape[:2],
                )
            self._size_wh = (first.shape[1], first.shape[0])
        return (
            None if ir is None else np.asarray(_resized(ir, self._size_wh), np.float32),
            None if vis is None else np.asarray(_resized(vis, self._size_wh), np.uint8),
        )


def _resized(image: Array, size_wh: tuple[int, int]) -> Array:
    if (image.shape[1], image.shape[0]) == size_wh:
        return image
    shrinks = image.shape[1] > size_wh[0]
    return cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _levels(luma: Float32Array) -> Uint8Array:
    """Convert luma in [0, 1] to uint8."""
    return (luma * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _marks(pair: Pair) -> tuple[str, ...]:
    marks = []
    if pair.ir is None:
        marks.append(f"infrared {pair.fault or 'lost'}")
    elif pair.ir.stale_ns > _FROZEN_MARK_NS:
        marks.append(f"infrared frozen for {pair.ir.stale_ns / 1e9:.1f} s")
    if pair.vis is None:
        marks.append(f"visible {pair.fault or 'lost'}")
    if pair.held:
        marks.append(f"held, {abs(pair.skew_ns or 0) / 1e6:.0f} ms apart")
    return tuple(marks)


def _write_marks(image: Uint8Array, marks: tuple[str, ...]) -> Uint8Array:
    """Write the marks into the lower left corner of a copy of the image."""
    marked = image.copy()
    widest_px = cv2.getTextSize(", ".join(marks), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)[0][0]
    scale = min(max(0.35, image.shape[1] / 1280), 0.95 * image.shape[1] / widest_px)
    at = (round(8 * scale) + 2, image.shape[0] - round(12 * scale) - 2)
    text, font, line = ", ".join(marks), cv2.FONT_HERSHEY_SIMPLEX, max(1, round(scale))
    shadow, ink = (_MARK_SHADOW, _MARK_COLOR) if image.ndim == 3 else ((0,), (255,))
    # The outline repeats the text with small offsets, as thicker letters are also wider since OpenCV 5.
    for dx, dy in itertools.product((-line, 0, line), repeat=2):
        cv2.putText(marked, text, (at[0] + dx, at[1] + dy), font, scale, shadow, line, cv2.LINE_AA)
    cv2.putText(marked, text, at, font, scale, ink, line, cv2.LINE_AA)
    return marked
