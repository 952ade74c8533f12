"""``test://``: a synthetic pair of cameras with a view of one moving scene, with known faults.

Both sides draw the same scene at the time of each frame, so a time skew shows as a shift in the image, as with real cameras.
The same URI gives the same images at the same times.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import SourceLostError, UsageError
from refusion_edge.stream.frames import MS, SECOND, Side
from refusion_edge.stream.sources.clock import SourceClock
from refusion_edge.stream.sources.scenes import COLD_COUNTS, HOT_COUNTS, MARGIN, Street, Texture
from refusion_edge.stream.sources.source import CLOCK_SYNTHETIC, CorruptFrameError, Grab
from refusion_edge.stream.uri import Uri, number_option, read_options
from refusion_edge.text import printable

SCENES = ("street", "texture")
_NOISE_FIELDS, _NOISE_STEPS = 8, 16
# Frames that wait for a reader, as time.
_STORED_NS = SECOND


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
        seed: Seed of the noise, and of ``scene=texture``; use the same for both cameras.
        noise: Standard deviation of the noise, in 8-bit gray levels (4 counts each at 16 bits).
        pan: Motion of the whole scene in pixels per second.
        scene: ``street``: a rendered street at night, with people; ``texture``: a random texture, with a hot figure.
        walker: Speed of the nearest person, or of the hot figure, in pixels per second; 0 for nobody.
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
    scene: str = "street"
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
    options = read_options(uri, names)
    values: dict[str, Any] = {}
    if (scene := options.get("scene", _DEFAULTS.scene)) not in SCENES:
        raise UsageError(
            f"scene in {uri} is '{printable(scene)}'", f"choose one of {', '.join(SCENES)}", expected=SCENES, got=scene
        )
    for field in fields(Scene):
        if field.name == "scene":
            values["scene"] = scene
            continue
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
                # Not when it is made: to draw the scene and to load an engine would cost its first frames.
                self._start_ns = _start_of_scene_ns(self.side)
            now_ns = time.monotonic_ns() - self._start_ns
            if self._is_lost(now_ns):
                raise SourceLostError(f"cannot open {self.uri}: the camera is lost on purpose (lose_every_ms)")
            if self._opened and self.timing is not None:
                self.timing.restart()
            if not self._opened:
                self._index = 0
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
        if (
            self.live
            and not scene.frames
            and time.monotonic_ns() - self._start_ns - taken_ns > _STORED_NS + scene.delay_ms * MS
        ):
            # Whoever reads too slowly misses frames, as with a real camera, unless a number of frames was asked for.
            # At least the next one: at less than a frame per second, the newest one is older than what is stored.
            newest = int((time.monotonic_ns() - self._start_ns - scene.skew_ms * MS) * scene.rate / SECOND)
            self._index = max(index + 1, newest)
            return self.read()
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
        self._scene = scene
        size_wh = scene.width, scene.height
        self._scenery = Street(side, size_wh) if scene.scene == "street" else Texture(side, size_wh, scene.seed)
        self._ground: Array = np.tile(self._scenery.ground, (1, 2, 1)[: self._scenery.ground.ndim])
        self._is_wide = side == "ir" and scene.bits == 16
        own = np.random.default_rng((scene.seed, side == "ir"))
        level = scene.noise * (4.0 if self._is_wide else 1.0)
        noise_shape = (scene.height + _NOISE_STEPS, scene.width + _NOISE_STEPS, *self._ground.shape[2:])
        kind = np.int16 if self._is_wide else np.int8
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
        top = int(MARGIN - scene.dy)
        image = self._ground[top : top + scene.height, left : left + scene.width].copy()
        if scene.walker:
            self._scenery.draw(image, seconds, scene.walker, (scene.dx, scene.dy))
        image = self._pixels(image)
        if self._noise:
            # Cheap, and it hardly ever repeats: one of a few fields at one of many offsets.
            field, dy, dx = np.random.default_rng((scene.seed, time_ns % (1 << 63))).integers(
                0, (_NOISE_FIELDS, _NOISE_STEPS, _NOISE_STEPS)
            )
            noise = self._noise[field][dy : dy + scene.height, dx : dx + scene.width]
            image = cv2.add(image, noise, dtype=cv2.CV_16U if self._is_wide else cv2.CV_8U)
        return image

    def _pixels(self, image: Array) -> Array:
        """Convert counts to pixels of the infrared camera."""
        if image.ndim == 3 or self._is_wide:
            return image
        return ((image - COLD_COUNTS) * (255.0 / (1.2 * HOT_COUNTS))).clip(0, 255).astype(np.uint8)


def _within(time_ns: int, every_ms: float, length_ms: float) -> bool:
    """Whether a time falls into a periodic fault; the first fault comes after one period."""
    return every_ms > 0 and time_ns >= every_ms * MS and time_ns % round(every_ms * MS) < length_ms * MS


def _shown_ns(taken_ns: int, scene: Scene) -> int:
    """Time of the scene that is shown: during a freeze, the time when the shutter closed."""
    if not _within(taken_ns, scene.freeze_every_ms, scene.freeze_ms):
        return taken_ns
    return taken_ns - taken_ns % round(scene.freeze_every_ms * MS)


class _Begun(threading.local):
    """The last camera that began a scene: its side, and the start.

    The other camera of the pair, opened next, sees the same scene, and both continue it after a loss. A pair is opened in one
    thread; rigs that open theirs at the same time do so in threads of their own, and do not mix their cameras.
    """

    last: tuple[Side, int] | None = None


_BEGUN = _Begun()
_ONE_PAIR_NS = SECOND // 2


def _start_of_scene_ns(side: Side) -> int:
    """The start of the scene that the other camera has just begun, or now."""
    now_ns, last = time.monotonic_ns(), _BEGUN.last
    if last is not None and last[0] != side and now_ns - last[1] <= _ONE_PAIR_NS:
        _BEGUN.last = None
        return last[1]
    _BEGUN.last = (side, now_ns)
    return now_ns
