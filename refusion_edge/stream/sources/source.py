"""The interface of a source of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import RefusionError
from refusion_edge.stream.frames import Side
from refusion_edge.stream.sources.clock import SourceClock
from refusion_edge.stream.uri import Uri

# Origins of the times of frames, as the report names them; those of live sources are in `clock`.
CLOCK_RECORDED = "recorded time stamps"
CLOCK_SYNTHETIC = "exact times of the synthetic scene"
CLOCK_GSTREAMER = "time stamps of the GStreamer buffers, on the host clock"
CLOCK_CONTAINER = "time stamps of the container"
CLOCK_COUNT = "frame number divided by the rate"


@dataclass(frozen=True, slots=True, eq=False)
class Grab:
    """An image from a source, with its number and time.

    Attributes:
        image: (H, W) or (H, W, 3) BGR of whole or float numbers.
        index: Number of the frame in the source, from 0; a gap is a frame that the source reports as missing.
        time_ns: Capture time, on the clock of the source.
        white: The value of full scale that the file or the pixel format states; None if it does not.
    """

    image: Array
    index: int
    time_ns: int
    white: float | None = None


class CorruptFrameError(RefusionError):
    """One unusable frame; the source continues. It is counted and noted in the report, and does not end the run."""


class Source(Protocol):
    """A camera or a file. Use each instance from one thread, as a context manager.

    Attributes:
        side: Which camera it is.
        uri: The URI it was opened from.
        live: Whether frames arrive on their own, as from a camera; frames of a file wait until they are read.
        absolute: Whether its clock is directly comparable with that of another source.
        remarks: What it guessed or repaired so far, in words; it may grow with every frame.
    """

    side: Side
    uri: Uri
    live: bool
    absolute: bool
    remarks: list[str]

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    @property
    def clock(self) -> str:
        """Origin of its time stamps, in words; it may change if better ones prove unusable."""

    @property
    def timing(self) -> SourceClock | None:
        """The clock that places its frames on the one of this machine; None if its time stamps are used as they are."""

    @property
    def rate_hz(self) -> float | None:
        """Nominal frame rate, or None if unknown."""

    @property
    def keeps_noise(self) -> bool:
        """Whether each frame shows the noise of the sensor, so that equal frames are a repeated one.

        Inter-coded video (H.264 and the like) repeats the pixels of a still scene.
        """

    def read(self) -> Grab | None:
        """Return the next frame, or None at the end.

        Raises:
            CorruptFrameError: This frame cannot be decoded; the next one may be good.
            SourceLostError: The camera is lost.
            InputError: The file is damaged, or not a video.
        """
