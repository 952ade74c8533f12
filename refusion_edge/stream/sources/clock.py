"""Mapping the time stamps of a stream to the host clock."""

from __future__ import annotations

from refusion_edge.stream.frames import SECOND

# Maximum drift between two quartz clocks, which bounds how fast the minimum delay can grow.
_DRIFT = 1e-4
# A larger step of the sender's clock is a restart, not jitter.
_RESTART_NS = 2 * SECOND


class ClockAnchor:
    """Maps the clock of a sender to the local monotonic clock, by the minimum delay observed.

    Network and decoder delay each frame by a varying time with a fixed minimum. ``arrival - stamp`` is smallest for the frames
    with the shortest delay; that difference maps all others. The minimum delay itself remains unknown.
    """

    def __init__(self) -> None:
        self._offset_ns: float | None = None
        self._arrived_ns = 0
        self._stamp_ns = 0

    def place(self, stamp_ns: int, arrived_ns: int) -> int:
        """Return the capture time of a frame on the monotonic clock.

        Args:
            stamp_ns: Time stamp of the sender.
            arrived_ns: Arrival, monotonic clock.
        """
        difference = float(arrived_ns - stamp_ns)
        restarted = abs((stamp_ns - self._stamp_ns) - (arrived_ns - self._arrived_ns)) > _RESTART_NS
        if self._offset_ns is None or restarted:
            self._offset_ns = difference
        else:
            self._offset_ns = min(difference, self._offset_ns + _DRIFT * (arrived_ns - self._arrived_ns))
        self._arrived_ns, self._stamp_ns = arrived_ns, stamp_ns
        return stamp_ns + int(self._offset_ns)
