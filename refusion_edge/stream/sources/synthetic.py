"""``test://``: a synthetic pair of cameras with a view of one moving scene, with known faults.

Both sides draw the same scene at the time of each frame, so a time skew shows as a shift in the image, as with real cameras.
The same URI gives the same images at the same times.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import SourceLostError, UsageError
from refusion_edge.stream.frames import MS, SECOND, Side
from refusion_edge.stream.sources.clock import SourceClock
from refusion_edge.stream.sources.source import CLOCK_SYNTHETIC, CorruptFrameError, Grab
from refusion_edge.stream.uri import Uri, number_option, read_options

_COLD_COUNTS, _SCENE_COUNTS, _HOT_COUNTS = 21_000.0, 600.0, 2_500.0
_NOISE_FIELDS, _NOISE_STEPS = 8, 16
# Maximum vertical shift, and the height of the scene above and below the view.
_MARGIN = 64


@dataclass(frozen=True, slots=True)
class Scene:
    """Settings of a synthetic camera; each is a URI option. Times are in ms, from the first frame.

    Attributes:
        width: Width of the image.
        height: Height of the image.
        rate: Frames per second.
        frames: Number of frames; 0 for an endless stream.
        live: 1: frames arrive at their time, as from a camera. 0: they wait, as in a file.
        bits: Bit depth of the infrared image, 16 or 8.
        seed: Seed of the scene; use the same for both cameras.
        noise: Standard deviation of the noise, in 8-bit gray levels (4 counts each at 16 bits).
        pan: Motion of the whole scene in pixels per second.
        walker: Speed of the hot figure that walks through the scene, in pixels per second; 0 for none.
        dx: Shift of this camera to the right, in pixels.
        dy: Downward shift of this camera, in pixels.
        skew_ms: Delay of its captures relative to the other camera; its time stamps show it.
        clock_ms: Lead of its clock, which makes its time stamps wrong, as with cameras that have their own clocks.
        delay_ms: Delay from capture to delivery.
        jitter_ms: Standard deviation of the delivery time.
        freeze_every_ms: Interval between shutter freezes; 0 for none.
        freeze_ms: Length of a freeze, which repeats the last image under fresh time stamps.
        drop_every_ms: Interval between dropouts; 0 for none.
        drop_ms: Length of a dropout, in which frames are missing while their numbers advance.
        lose_every_ms: Interval between losses of the camera; 0 for none.
        lose_ms: Time until a lost camera can be opened again.
        corrupt_every: Every n-th frame is damaged; 0 for none.
        resize_every: Number of frames after which the size is halved, and restored after as many more; 0 for never.
        step_every_ms: Interval between steps of its clock, which goes forward and back in turn; 0 for none.
        step_ms: Size of a step.
        zero_times: 1: all time stamps are zero, as with broken drivers.
    """

    width: int = 640
    height: int = 480
    rate: float = 30.0
    frames: int = 0
    live: int = 1
    bits: int = 16
    seed: int = 0
    noise: float = 2.0
    pan: float = 0.0
    walker: float = 60.0
    dx: float = 0.0
    dy: float = 0.0
    skew_ms: float = 0.0
    clock_ms: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    freeze_every_ms: float = 0.0
    freeze_ms: float = 500.0
    drop_every_ms: float = 0.0
    drop_ms: float = 200.0
    lose_every_ms: float = 0.0
    lose_ms: float = 1500.0
    corrupt_every: int = 0
    resize_every: int = 0
    step_every_ms: float = 0.0
    step_ms: float = 3_600_000.0
    zero_times: int = 0


_RANGES: dict[str, tuple[float, float]] = {
    "width": (8, 8192), "height": (8, 8192), "rate": (0.01, 1000), "live": (0, 1), "bits": (8, 16), "zero_times": (0, 1),
    "dx": (-1000, 1000), "dy": (-64, 64), "skew_ms": (-10_000, 10_000), "clock_ms": (-10_000, 10_000),
    "pan": (-10_000, 10_000),
}  # fmt: skip


_DEFAULTS = Scene()


def read_scene(uri: Uri) -> Scene:
    """Read the settings of a synthetic camera.

    Raises:
        UsageError: An option is unknown or out of range.
    """
    names = [field.name for field in fields(Scene)]
    read_options(uri, names)
    values: dict[str, Any] = {}
    for field in fields(Scene):
        low, high = _RANGES.get(field.name, (0, 1e9))
        value = number_option(uri, field.name, getattr(_DEFAULTS, field.name), low=low, high=high)
        values[field.name] = int(value) if field.type == "int" else value
    return Scene(**values)


class SyntheticSource:
    """One of two synthetic cameras, see ``Scene``. Implements ``Source``."""

    absolute = keeps_noise = True

    def __init__(self, uri: Uri, side: Side) -> None:
        self.uri, self.side = uri, side
        self.remarks: list[str] = []
        if uri.target not in ("", side):
            raise UsageError(f"{uri} cannot be the source {side}", f"write test://{side}")
        self.scene = read_scene(uri)
        self.live = bool(self.scene.live)
        # A clock that is set is its own, like that of a network camera.
        shared = not self.scene.step_every_ms
        self.timing = SourceClock(CLOCK_SYNTHETIC, shared=shared) if self.live else None
        self._start_ns = 0
        self._painter = Painter(self.scene, side)
        self._index = 0
        self._opened = False
        self._jitter = np.random.default_rng(self.scene.seed + 1)

    def __enter__(self) -> Self:
        if self.live:
            if not self._opened:
                # Not when it was made: what is loaded between would cost its first frames.
                self._start_ns = _start_of_pair_ns()
            now_ns = time.monotonic_ns() - self._start_ns
            if self._is_lost(now_ns):
                raise SourceLostError(f"cannot open {self.uri}: the camera is lost on purpose (lose_every_ms)")
            if self._opened and self.timing is not None:
                self.timing.restart()
            self._index = max(self._index, int(now_ns * self.scene.rate / SECOND) + 1)
        self._opened = True
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    @property
    def clock(self) -> str:
        """See ``Source.clock``."""
        return CLOCK_SYNTHETIC if self.timing is None else self.timing.state.clock

    @property
    def rate_hz(self) -> float | None:
        """Frames per second."""
        return self.scene.rate

    def read(self) -> Grab | None:
        """See ``Source.read``."""
        scene = self.scene
        while True:
            if scene.frames and self._index >= scene.frames:
                return None
            index = self._index
            self._index += 1
            taken_ns = round(index * SECOND / scene.rate + scene.skew_ms * MS)
            if not _within(taken_ns, scene.drop_every_ms, scene.drop_ms):
                break
        if self.live:
            late_ms = scene.delay_ms + abs(float(self._jitter.normal(0.0, scene.jitter_ms)) if scene.jitter_ms else 0.0)
            wait_ns = self._start_ns + taken_ns + round(late_ms * MS) - time.monotonic_ns()
            if wait_ns > 0:
                time.sleep(wait_ns / SECOND)
        if self._is_lost(taken_ns):
            raise SourceLostError(f"{self.uri} sends no more frames: the camera is lost on purpose (lose_every_ms)")
        if scene.corrupt_every and index % scene.corrupt_every == scene.corrupt_every - 1:
            raise CorruptFrameError(f"frame {index} is damaged on purpose")
        image = self._painter.paint(_shown_ns(taken_ns, scene))
        if scene.resize_every and index // scene.resize_every % 2:
            image = cv2.resize(image, (scene.width // 2, scene.height // 2), interpolation=cv2.INTER_AREA)
        stamp_ns = 0 if scene.zero_times else self._start_ns + taken_ns
        if scene.step_every_ms and taken_ns // round(scene.step_every_ms * MS) % 2:
            stamp_ns += round(scene.step_ms * MS)
        if self.timing is not None:
            stamp_ns = self.timing.place(stamp_ns, time.monotonic_ns())
        return Grab(image, index, stamp_ns if scene.zero_times else stamp_ns + round(scene.clock_ms * MS))

    def _is_lost(self, time_ns: int) -> bool:
        return _within(time_ns, self.scene.lose_every_ms, self.scene.lose_ms)


class Painter:
    """Draws the scene as one of the cameras sees it. Not thread-safe; each image is a new array."""

    def __init__(self, scene: Scene, side: Side) -> None:
        self._scene, self._side = scene, side
        draw = np.random.default_rng(scene.seed)
        # Twice as wide as the view and repeated, so that a panning scene continues without a seam.
        shape = (scene.height + 2 * _MARGIN, scene.width * 2)
        ground, texture = _smooth(draw, shape, 24.0), _smooth(draw, shape, 2.0)
        if side == "ir":
            plane = self._counts(_COLD_COUNTS + _SCENE_COUNTS * (0.8 * ground + 0.2 * texture))
            self._depth = cv2.CV_16U if plane.dtype == np.uint16 else cv2.CV_8U
            self._ground: Array = np.tile(plane, (1, 2))
        else:
            colored = (40.0 + 150.0 * (0.3 * ground + 0.7 * texture))[..., None] * np.array([0.9, 1.0, 0.8])
            self._depth = cv2.CV_8U
            self._ground = np.tile(colored.astype(np.uint8), (1, 2, 1))
        own = np.random.default_rng((scene.seed, side == "ir"))
        level = scene.noise * (4.0 if self._depth == cv2.CV_16U else 1.0)
        noise_shape = (scene.height + _NOISE_STEPS, scene.width + _NOISE_STEPS, *self._ground.shape[2:])
        kind = np.int16 if self._depth == cv2.CV_16U else np.int8
        limit = np.iinfo(kind)
        self._noise = [
            np.rint(own.normal(0.0, level, noise_shape)).clip(limit.min, limit.max).astype(kind)
            for _ in range(_NOISE_FIELDS if scene.noise else 0)
        ]

    def paint(self, time_ns: int) -> Array:
        """Draw the scene at a given time, which also determines the noise.

        Returns:
            Infrared: (H, W) uint16 counts, or uint8. Visible: (H, W, 3) BGR uint8.
        """
        scene, seconds = self._scene, time_ns / SECOND
        left = int((scene.pan * seconds - scene.dx) % (scene.width * 2))
        top = int(_MARGIN - scene.dy)
        image = self._ground[top : top + scene.height, left : left + scene.width].copy()
        if scene.walker:
            self._walk(image, seconds)
        if self._noise:
            # Cheap, and it hardly ever repeats: one of a few fields at one of many offsets.
            field, dy, dx = np.random.default_rng((scene.seed, time_ns % (1 << 63))).integers(
                0, (_NOISE_FIELDS, _NOISE_STEPS, _NOISE_STEPS)
            )
            noise = self._noise[field][dy : dy + scene.height, dx : dx + scene.width]
            image = cv2.add(image, noise, dtype=self._depth)
        return image

    def _walk(self, image: Array, seconds: float) -> None:
        """Draw the hot figure, a warm body with a hotter head, which crosses the view and then stays away for as long."""
        scene = self._scene
        size = max(2, scene.height // 10)
        x = scene.walker * seconds % (2 * scene.width + 4 * size) - 2 * size + scene.dx
        y = scene.height * 0.6 + scene.dy
        if self._side == "ir":
            body, head = (tuple(self._counts(np.array([_COLD_COUNTS + part * _HOT_COUNTS])).tolist()) for part in (0.7, 1.0))
        else:
            body, head = (60, 50, 45), (90, 110, 140)
        # Sub-pixel positions, in sixteenths.
        at = (round(x * 16), round(y * 16))
        cv2.ellipse(image, at, (size * 8, size * 24), 0.0, 0.0, 360.0, body, -1, cv2.LINE_8, 4)
        cv2.circle(image, (at[0], at[1] - size * 28), size * 8, head, -1, cv2.LINE_8, 4)

    def _counts(self, values: Array) -> Array:
        """Convert counts to pixels of the infrared camera."""
        if self._scene.bits == 16:
            return values.astype(np.uint16)
        return ((values - _COLD_COUNTS) * (255.0 / (1.2 * _HOT_COUNTS))).clip(0, 255).astype(np.uint8)


def _smooth(draw: np.random.Generator, shape: tuple[int, int], sigma: float) -> Float32Array:
    plane = draw.standard_normal(shape).astype(np.float32)
    # Blurred with wraparound, so that it repeats without a seam.
    margin = int(4 * sigma)
    wrapped = cv2.GaussianBlur(np.pad(plane, ((0, 0), (margin, margin)), mode="wrap"), (0, 0), sigma)[:, margin:-margin]
    low, high = float(wrapped.min()), float(wrapped.max())
    return np.asarray((wrapped - low) / (high - low), np.float32)


def _within(time_ns: int, every_ms: float, length_ms: float) -> bool:
    """Whether a time falls into a periodic fault; the first fault comes after one period."""
    return every_ms > 0 and time_ns >= every_ms * MS and time_ns % round(every_ms * MS) < length_ms * MS


def _shown_ns(taken_ns: int, scene: Scene) -> int:
    """Time of the scene that is shown: during a freeze, the time when the shutter closed."""
    if not _within(taken_ns, scene.freeze_every_ms, scene.freeze_ms):
        return taken_ns
    return taken_ns - taken_ns % round(scene.freeze_every_ms * MS)


# Start of the last pair: cameras created together share one scene, and continue it after a restart.
_LAST_START_NS: list[int] = []
_ONE_PAIR_NS = SECOND // 2


def _start_of_pair_ns() -> int:
    """Now, or the start of the camera that was opened just before."""
    now_ns = time.monotonic_ns()
    if not _LAST_START_NS or now_ns - _LAST_START_NS[0] > _ONE_PAIR_NS:
        _LAST_START_NS[:] = [now_ns]
    return _LAST_START_NS[0]
