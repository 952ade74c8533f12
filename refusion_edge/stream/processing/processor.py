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
from refusion_edge.images.luma import SWAPPED, find_palette
from refusion_edge.images.ranges import WHITE, Mask
from refusion_edge.rig.warp import RigWarp, SourceWarp
from refusion_edge.sizes import MIN_SIDE
from refusion_edge.stream.frames import SIDES, Frame, FusedFrame, Mode, Pair, Side
from refusion_edge.stream.processing.adaptation import Adaptation
from refusion_edge.stream.processing.depth import FullScale
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch

# Content that has not changed for longer than two frames of a slow camera is marked.
_FROZEN_MARK_NS = 250_000_000
_MARK_COLOR, _MARK_SHADOW = (0, 220, 255), (0, 0, 0)
# So many rows and columns apart, pixels show whether it is worth looking at all of them.
_SPARSE = 16

Timer = Callable[[str, int], None]
Remark = Callable[[Side, str], None]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the two views are brought to one size.

    Attributes:
        warp: Warp of the rig, or None.
        resize: Whether to resize an infrared image to the visible size if there is no rig.
    """

    warp: RigWarp | None = None
    resize: bool = False


@dataclass(slots=True)
class _View:
    """A frame on the way to the common view.

    Attributes:
        pixels: (H, W) float32 luma in [0, 1] of the infrared camera; (H, W) or (H, W, 3) BGR uint8 of the visible one.
        missing: (H, W), True where the camera has no value or does not see; None if nowhere.
    """

    pixels: Array
    missing: Mask | None

    def hide(self, missing: Mask) -> None:
        """Add pixels without a value, which become black."""
        same = self.missing is not None and self.missing.shape == missing.shape
        self.missing = self.missing | missing if same and self.missing is not None else missing
        np.copyto(self.pixels, 0, where=missing if self.pixels.ndim == 2 else missing[..., None])


class Processor:
    """Fuses pairs of frames. Use each instance from one thread; it owns the state that is smoothed over time.

    The visible image stays in uint8: its luma is fused, its chroma bypasses the network. One table maps infrared counts to
    float32 luma, so that the network gets their full depth. Where one camera has no value, or does not see, the fused image
    shows the other one.

    Args:
        backend: Runs the network; owned by the caller.
        gain: Thermal gain control.
        stretch: Output range.
        adaptation: Statistics over time, for a network and a back end that adapt to them; others do without.
        geometry: How the two views are brought to one size.
        color: Whether the fused image keeps the color of the visible one.
        marks: Whether frozen, held and missing cameras are marked in the image.
        took: Called with the name and the duration in ns of each stage.
        remark: Called with the camera and with what was guessed about it or is doubtful, once each.
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
        remark: Remark = lambda _side, _text: None,
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
        self._unseen = _unseen(self._first_warp, self._first_warp)
        self._hidden: dict[Side, tuple[SourceWarp, Mask, Mask]] = {}
        self._remark, self._remarked = remark, set[tuple[Side, str]]()
        self._full_scale = FullScale(partial(remark, "vis"))
        self._checks_colors = True
        self._shown_by: dict[Side, bool] = {}

    @property
    def first_warp(self) -> RigWarp | None:
        """The warp at the start of the run, whose used parts of the frames everything is measured on; None without a rig."""
        return self._first_warp

    @property
    def flat(self) -> tuple[Side, ...]:
        """Cameras of which no frame so far shows anything, as each has the same value in every pixel."""
        return tuple(side for side, shows in self._shown_by.items() if not shows)

    def use_warp(self, warp: RigWarp) -> None:
        """Set the warp of the next frames; call it between two frames, from the thread that processes them."""
        self._geometry = replace(self._geometry, warp=warp)
        self._unseen = _unseen(warp, self._first_warp)

    def use_backend(self, backend: Backend) -> None:
        """Run the next frames on another back end or with another network; call it between two frames, from their thread."""
        self._adaptation.reset()
        self._use(backend)

    def _use(self, backend: Backend) -> None:
        self._finisher = Finisher(backend, self._stretch.kind, "bgr")
        self._takes_uint8 = self._finisher.takes_uint8
        self._adapted = backend if isinstance(backend, AdaptedBackend) and backend.adapts else None

    def process(self, pair: Pair) -> FusedFrame:
        """Fuse a pair, or pass on the only frame of it.

        Raises:
            ShapeError: The two sizes differ, with neither a rig nor ``resize``; or the frames are too small.
            InputError: A frame has no pixel with a value, or a visible one has values out of range.
            GateError: The network's output is not finite.
        """
        started_ns = time.perf_counter_ns()
        ir = None if pair.ir is None else self._infrared(pair.ir)
        vis = None if pair.vis is None else self._visible(pair.vis)
        if self._checks_colors and pair.ir is not None and pair.vis is not None:
            self._check_colors(pair.ir.image, pair.vis.image)
        self._to_one_size(ir, vis)
        mode: Mode
        if ir is None or vis is None:
            mode = "infrared only" if vis is None else "visible only"
            self._adaptation.reset()
            image = _levels(ir.pixels) if ir is not None else vis.pixels if vis is not None else None
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
            image, None if ir is None else ir.pixels, None if vis is None else vis.pixels, pair.number, newest.time_ns,
            newest.arrived_ns, mode, marks, pair.skew_ns, None if ir is None else ir.missing,
            None if vis is None else vis.missing,
        )  # fmt: skip

    def _fuse(self, ir: _View, vis: _View, time_ns: int, started_ns: int) -> Uint8Array:
        gray, color = split_uint8(vis.pixels, "bgr")
        luma: Array = gray if self._takes_uint8 else gray * np.float32(1 / 255)
        infrared, shown = ir.pixels, gray
        if ir.missing is not None:
            infrared = np.where(ir.missing, gray * np.float32(1 / 255) if self._takes_uint8 else luma, ir.pixels)
        if vis.missing is not None:
            shown = np.where(vis.missing, _levels(infrared), gray)
            luma = np.where(vis.missing, shown if self._takes_uint8 else infrared, luma)
            if color is not None:
                color = color.gray_where(vis.missing)
        missing = _either(ir.missing, vis.missing)
        beside = None if missing is None else (shown, missing)
        prepared_ns = time.perf_counter_ns()
        self._took("preprocess", prepared_ns - started_ns)
        output = self._infer(infrared[None, None], luma[None, None], time_ns, missing)
        inferred_ns = time.perf_counter_ns()
        self._took("infer", inferred_ns - prepared_ns)
        stretch = partial(self._stretch.apply, time_ns=time_ns)
        image = self._finisher.finish(output, color if self._color else None, stretch, beside=beside)
        self._took("postprocess", time.perf_counter_ns() - inferred_ns)
        return image

    def _infer(self, a: Float32Array, b: Array, time_ns: int, missing: Mask | None) -> Float32Array | Uint8Array:
        if self._adapted is None:
            return self._finisher.infer(a, b)
        # Where one camera has no value, both planes are alike, which says nothing about the scene.
        rows, columns = _common_part(missing)
        figures = self._adapted.statistics(a[..., rows, columns], b[..., rows, columns])
        return self._adapted.fuse_adapted(a, b, self._adaptation.update(figures, time_ns))

    def _follow_cameras(self, pair: Pair) -> None:
        """Forget the statistics of frames that a camera took at another size."""
        taken = [frame.size_wh for frame in (pair.ir, pair.vis) if frame is not None]
        if taken != self._adapted_to:
            self._adaptation.reset()
            self._adapted_to = taken

    def _infrared(self, frame: Frame) -> _View:
        warp, first = self._geometry.warp, self._first_warp
        used = frame.image if first is None else first.ir.used(frame.image)
        self.gain.update(used, frame.time_ns)
        # Warping float32 luma is faster than warping counts.
        luma, invalid = self.gain.apply(used), self.gain.invalid
        self._note_contrast("ir", used)
        if invalid is not None:
            self._say_missing("ir", invalid)
        if first is not None and used.shape != frame.image.shape:
            luma = _in_whole(luma, frame.image, first.ir)
            invalid = None if invalid is None else _in_whole(invalid, frame.image, first.ir)
        if warp is None:
            return _View(luma, invalid)
        return self._warped(warp.ir, luma, invalid)

    def _visible(self, frame: Frame) -> _View:
        warp, first = self._geometry.warp, self._first_warp
        used = frame.image if first is None else first.vis.used(frame.image)
        levels, invalid = self._full_scale.to_levels(frame.image, frame.white, used)
        self._note_contrast("vis", used)
        if invalid is not None:
            self._say_missing("vis", invalid)
        if warp is None:
            return _View(levels, invalid)
        return self._warped(warp.vis, levels, invalid)

    def _warped(self, warp: SourceWarp, pixels: Array, invalid: Mask | None) -> _View:
        """Warp a frame; where a pixel without a value has a part in it, it has none."""
        view = _View(warp.apply(pixels), self._unseen[warp.name])
        if invalid is not None:
            # Dead pixels stay the same, and warping their mask takes as long as warping the frame.
            before = self._hidden.get(warp.name)
            if before is None or before[0] is not warp or not np.array_equal(before[1], invalid):
                before = self._hidden[warp.name] = (warp, invalid, warp.apply(invalid.astype(np.float32)) > 0)
            view.hide(before[2])
        return view

    def _note_contrast(self, side: Side, used: Array) -> None:
        shows = not _is_flat(used)
        self._shown_by[side] = self._shown_by.get(side, False) or shows
        if not shows:
            self._say(side, "frames with the same value in every pixel add nothing to the fused image")

    def _say_missing(self, side: Side, invalid: Mask) -> None:
        other = "visible" if side == "ir" else "infrared"
        self._say(side, f"pixels without a value show the {other} image ({np.count_nonzero(invalid)} in the first such frame)")

    def _say(self, side: Side, text: str) -> None:
        about = (side, text.partition(" (")[0])
        if about not in self._remarked:
            self._remarked.add(about)
            self._remark(side, text)

    def _check_colors(self, ir: Array, vis: Array) -> None:
        """Say it once if infrared is colored."""
        self._checks_colors = False
        palette = find_palette(ir, _white(ir))
        if palette is None:
            return
        self._say("ir", palette.text)
        if find_palette(vis, _white(vis)) is None:
            self._say("ir", f"colored, and the visible image is gray, {SWAPPED}")

    def _to_one_size(self, ir: _View | None, vis: _View | None) -> None:
        """Keep the size of the first pair for the whole run, even if a camera changes its size later."""
        if self._size_wh is None:
            first = vis if vis is not None else ir
            assert first is not None
            height, width = first.pixels.shape[:2]
            if ir is not None and ir.pixels.shape[:2] != (height, width) and not self._geometry.resize:
                raise ShapeError(
                    f"the cameras differ in size: infrared {ir.pixels.shape[0]}x{ir.pixels.shape[1]}, visible {height}x{width}",
                    "give --rig (see 'refusion-edge align'), or --resize if both have the same view",
                    expected=(height, width),
                    got=ir.pixels.shape[:2],
                )
            if min(height, width) < MIN_SIDE:
                raise ShapeError(
                    f"frames of {height}x{width} are too small",
                    f"use cameras of at least {MIN_SIDE}x{MIN_SIDE}",
                    expected=(MIN_SIDE, MIN_SIDE),
                    got=(height, width),
                )
            self._size_wh = (width, height)
        for view in (ir, vis):
            if view is not None and view.pixels.shape[1::-1] != self._size_wh:
                view.pixels = _resized(view.pixels, self._size_wh)
                if view.missing is not None:
                    view.hide(_resized(view.missing.astype(np.float32), self._size_wh) > 0)


def _unseen(warp: RigWarp | None, first: RigWarp | None) -> dict[Side, Mask | None]:
    """Where either camera does not see the common view; None if nowhere.

    Only the part of an infrared frame that the first warp uses is mapped to luma; a refined warp may reach beyond it.
    """
    if warp is None or first is None:
        return dict.fromkeys(SIDES)
    unseen: dict[Side, Mask | None] = {view.name: None if view.mask.all() else ~view.mask for view in (warp.ir, warp.vis)}
    if warp is not first:
        width, height = first.ir.size_wh
        unmapped = np.ones((height, width), np.float32)
        first.ir.used(unmapped)[...] = 0
        beyond: Mask = warp.ir.apply(unmapped) > 0
        if beyond.any():
            unseen["ir"] = _either(unseen["ir"], beyond)
    return unseen


def _is_flat(image: Array) -> bool:
    """Whether all pixels that have a value have the same one."""
    for part in (image[::_SPARSE, ::_SPARSE], image):
        known = part[np.isfinite(part)] if part.dtype.kind == "f" else part
        if known.size and known.min() != known.max():
            return False
    return True


def _white(image: Array) -> float:
    if image.dtype == np.uint8:
        return WHITE
    return float(np.max(image, where=np.isfinite(image), initial=0)) if image.dtype.kind == "f" else float(image.max())


def _either(one: Mask | None, other: Mask | None) -> Mask | None:
    if one is None or other is None:
        return one if other is None else other
    return one | other


def _common_part(missing: Mask | None) -> tuple[slice, slice]:
    """Rows and columns of the box around the pixels that both cameras see; everything if it is too small."""
    everything = slice(None), slice(None)
    if missing is None:
        return everything
    seen = [np.flatnonzero(~missing.all(axis=axis)) for axis in (1, 0)]
    if any(places.size == 0 or places[-1] - places[0] + 1 < MIN_SIDE for places in seen):
        return everything
    rows, columns = (slice(int(places[0]), int(places[-1]) + 1) for places in seen)
    return rows, columns


def _in_whole(part: Array, frame: Array, warp: SourceWarp) -> Array:
    """A part of a frame in a whole one, which is 0 elsewhere."""
    whole = np.zeros(frame.shape[:2], part.dtype)
    warp.used(whole)[...] = part
    return whole


def _resized(image: Array, size_wh: tuple[int, int]) -> Array:
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
