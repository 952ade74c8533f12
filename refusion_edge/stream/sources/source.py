"""What a source of frames promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import RefusionError
from refusion_edge.stream.frames import Side
from refusion_edge.stream.uri import Uri

# Where a time stamp can come from, best first; the report names the one in use.
CLOCK_RECORDED = "recorded time stamps"
CLOCK_SYNTHETIC = "exact times of the synthetic scene"
CLOCK_KERNEL = "kernel time of the capture buffer"
CLOCK_GSTREAMER = "time stamps of GStreamer's buffers, on the host's clock"
CLOCK_STREAM = "time stamps of the stream, placed on the host's clock by the least delay seen"
CLOCK_CONTAINER = "time stamps of the container"
CLOCK_COUNT = "frame number divided by the rate"
CLOCK_ARRIVAL = "host clock at arrival"


@dataclass(frozen=True, slots=True, eq=False)
class Grab:
    """What a source delivers.

    Attributes:
        image: (H, W) or (H, W, 3) BGR; uint8, uint16 or float32.
        index: Number of the frame in the source, from 0; a gap is a frame that the source knows to be missing.
        time_ns: When it was taken, on the source's clock.
    """

    image: Array
    index: int
    time_ns: int


class CorruptFrameError(RefusionError):
    """One frame that cannot be used; the source goes on. Counted, never shown to the user as an error."""


class Source(Protocol):
    """A camera or a file. One instance, one thread; use it as a context manager.

    Attributes:
        side: Which camera it is.
        uri: What it was opened from.
        live: Whether frames come by themselves; otherwise they wait until they are read, and none may be dropped.
        absolute: Whether its clock can be compared with that of another source as it is.
    """

    side: Side
    uri: Uri
    live: bool
    absolute: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    @property
    def clock(self) -> str:
        """Where its time stamps come from, in words; it may change when better ones turn out unusable."""

    @property
    def rate_hz(self) -> float | None:
        """Nominal frame rate, or None if nobody says."""

    def read(self) -> Grab | None:
        """Deliver the next frame; None at the end.

        Raises:
            CorruptFrameError: This frame cannot be decoded; the next may be good.
            SourceLostError: The camera is gone.
            InputError: The file is damaged or not a video.
        """
