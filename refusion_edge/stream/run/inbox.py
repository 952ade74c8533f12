"""The queue between the two readers and pairing, which puts frames in one order."""

from __future__ import annotations

import threading

from refusion_edge.stream.frames import SIDES, Frame, Side
from refusion_edge.stream.pairing.epochs import Epochs
from refusion_edge.stream.run.channel import Channel

_CAPACITY = 64


class Inbox:
    """Gives frames of cameras in order of arrival, frames of files in order of time. Two threads put, one gets.

    Args:
        live: Whether frames come from cameras, whose oldest frame is dropped when pairing is late; files wait.
        offset_ns: Added to the times of ir to order the frames of files, so that files that began at different times meet.

    Attributes:
        epochs: Places the frames of files whose clock was set while they were recorded.
    """

    def __init__(self, *, live: bool, offset_ns: int = 0) -> None:
        self.epochs = Epochs()
        self._offset_ns = {"ir": offset_ns, "vis": 0}
        shared: Channel[Frame] = Channel(_CAPACITY, lossless=not live)
        self._live = live
        self._channels = {side: shared if live else Channel[Frame](_CAPACITY, lossless=True) for side in SIDES}
        self._heads: dict[Side, Frame | None] = {}
        self._open: set[Side] = set(SIDES)
        self._lock = threading.Lock()

    def put(self, frame: Frame) -> Frame | None:
        """Add a frame; returns the dropped frame, as ``Channel.put`` does."""
        return self._channels[frame.side].put(frame)

    def get(self) -> Frame | None:
        """Take the next frame; None after both readers have ended."""
        if self._live:
            return self._channels["ir"].get()
        for side in SIDES:
            if self._heads.get(side) is None:
                frame = self._channels[side].get()
                self._heads[side] = None if frame is None else self.epochs.place(frame)
        ready = [frame for frame in self._heads.values() if frame is not None]
        if not ready:
            return None
        first = min(ready, key=lambda frame: frame.time_ns + self._offset_ns[frame.side])
        self._heads[first.side] = None
        return first

    def end(self, side: Side) -> None:
        """Mark a reader as ended; the shared channel of cameras closes after the second one."""
        with self._lock:
            self._open.discard(side)
            if not self._live or not self._open:
                self._channels[side].close()

    def close(self) -> None:
        """Accept no more frames from either reader."""
        for channel in self._channels.values():
            channel.close()
