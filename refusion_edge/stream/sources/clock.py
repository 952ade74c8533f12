"""Placing the time stamps of a stream on the host's clock."""

from __future__ import annotations

from refusion_edge.stream.frames import SECOND

# Two quartz clocks drift apart by at most this; the least delay may grow that fast.
_DRIFT = 1e-4
# A step of the sender's clock by more than this is a new start, not jitter.
_RESTART_NS = 2 * SECOND


class ClockAnchor:
    """Maps the clock of a sender to the monotonic clock here, by the least delay seen.

    Network and decoder delay a frame by a varying time, never by less than some least one. ``arrival - stamp`` is smallest
    for the frames that were delayed least; that difference places all others. What remains unknown is the least delay itself.
    """

    def __init__(self) -> None:
        self._offset_ns: float | None = None
        self._arrived_ns = 0
        self._stamp_ns = 0

    def place(self, stamp_ns: int, arrived_ns: int) -> int:
        """Give the time on the monotonic clock for a frame.

        Args:
            stamp_ns: Time stamp of the sender.
            arrived_ns: When it arrived, monotonic clock.
        """
        difference = float(arrived_ns - stamp_ns)
        restarted = abs((stamp_ns - self._stamp_ns) - (arrived_ns - self._arrived_ns)) > _RESTART_NS
        if self._offset_ns is None or restarted:
            self._offset_ns = difference
        else:
            self._offset_ns = min(difference, self._offset_ns + _DRIFT * (arrived_ns - self._arrived_ns))
        self._arrived_ns, self._stamp_ns = arrived_ns, stamp_ns
        return stamp_ns + int(self._offset_ns)
