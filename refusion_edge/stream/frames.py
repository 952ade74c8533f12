"""Data classes that move through a stream: frames of one camera, pairs, fused frames."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.images.ranges import Mask

Side = Literal["ir", "vis"]
SIDES: tuple[Side, Side] = ("ir", "vis")

Mode = Literal["fused", "visible only", "infrared only"]
MODES: tuple[Mode, ...] = ("fused", "visible only", "infrared only")

MS = 1_000_000
SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A timed image of one camera. Treat ``image`` as read-only.

    Attributes:
        side: Which camera.
        image: (H, W) or (H, W, 3) BGR of whole or float numbers, as the camera delivers it.
        index: Number of the frame in its source, from 0; a gap is a frame that was never delivered.
        time_ns: Capture time, on the clock that the source names.
        arrived_ns: Arrival in this process, monotonic clock.
        unchanged_since_ns: ``time_ns`` of the first frame in the run of identical frames that ends with this one; equal to
            ``time_ns`` if the content is new.
        white: The value of full scale that the source states, such as 4095 for 12 bits; None if it does not.
    """

    side: Side
    image: Array
    index: int
    time_ns: int
    arrived_ns: int
    unchanged_since_ns: int
    white: float | None = None

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the image."""
        return self.image.shape[1], self.image.shape[0]

    @property
    def stale_ns(self) -> int:
        """Time in ns since the content last changed."""
        return self.time_ns - self.unchanged_since_ns

    def moved(self, by_ns: int) -> Frame:
        """The same frame at another time."""
        return replace(self, time_ns=self.time_ns + by_ns, unchanged_since_ns=self.unchanged_since_ns + by_ns)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Frames that are shown together: one of each camera, or a single one while the other camera is lost.

    Attributes:
        number: Number of the pair, from 0.
        ir: Frame of the infrared camera, or None.
        vis: Frame of the visible camera, or None.
        held: Whether one frame is older than the maximum skew allows, kept by the policy ``hold``.
        fault: Why a frame is missing although its camera delivers, in words; empty if the camera is lost.
    """

    number: int
    ir: Frame | None
    vis: Frame | None
    held: bool = False
    fault: str = ""

    @property
    def newest(self) -> Frame:
        """The later of the two frames."""
        frames = [frame for frame in (self.ir, self.vis) if frame is not None]
        return max(frames, key=lambda frame: frame.time_ns)

    def images(self) -> dict[Side, Array]:
        """The images that it has, by side, in the order of image files: (H, W), or (H, W, 3) RGB."""
        frames = [frame for frame in (self.ir, self.vis) if frame is not None]
        return {
            frame.side: frame.image if frame.image.ndim == 2 else np.ascontiguousarray(frame.image[..., ::-1])
            for frame in frames
        }

    @property
    def skew_ns(self) -> int | None:
        """Time of the visible frame minus time of the infrared one, or None for a single frame."""
        return None if self.ir is None or self.vis is None else self.vis.time_ns - self.ir.time_ns


@dataclass(frozen=True, slots=True, eq=False)
class FusedFrame:
    """A fused image and the data it was made from.

    Attributes:
        image: (H, W) or (H, W, 3) BGR, uint8.
        ir: Infrared luma, (H, W) float32, [0, 1], black where there is none, or None.
        vis: Visible image on the same grid, (H, W) or (H, W, 3) BGR uint8, or None.
        number: Number of the pair.
        time_ns: Capture time of its newer frame.
        arrived_ns: Arrival of its newer frame, monotonic clock.
        mode: Which cameras it shows.
        marks: Notes for the viewer, such as ``infrared lost``.
        skew_ns: See ``Pair.skew_ns``.
        no_ir: (H, W) bool, True where infrared has no value and the fused image shows the visible one; None if there are none.
        no_vis: The same for the visible image.
    """

    image: Uint8Array
    ir: Float32Array | None
    vis: Uint8Array | None
    number: int
    time_ns: int
    arrived_ns: int
    mode: Mode
    marks: tuple[str, ...] = field(default=())
    skew_ns: int | None = None
    no_ir: Mask | None = None
    no_vis: Mask | None = None

    @property
    def rgb(self) -> Uint8Array:
        """The fused image, (H, W) or (H, W, 3) RGB; a new array if it has color."""
        return self.image if self.image.ndim == 2 else np.ascontiguousarray(self.image[..., ::-1])

    @property
    def time_s(self) -> float:
        """``time_ns`` in seconds."""
        return self.time_ns / SECOND

    @property
    def skew_ms(self) -> float | None:
        """``skew_ns`` in milliseconds."""
        return None if self.skew_ns is None else self.skew_ns / MS

    def with_image(self, image: Uint8Array) -> FusedFrame:
        """The same frame with another image, such as one with boxes drawn into it."""
        return replace(self, image=image)


def other(side: Side) -> Side:
    """Return the opposite side."""
    return "vis" if side == "ir" else "ir"
