"""Bounded queues between threads that can be closed from either end: one of any items, and one that orders two cameras."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from refusion_edge.stream.frames import SIDES, Frame, Side
from refusion_edge.stream.pairing.epochs import Epochs

Item = TypeVar("Item")
_INBOX_CAPACITY = 64


class Channel(Generic[Item]):
    """Holds at most ``capacity`` items. When full, it blocks (``lossless``) or drops the oldest item.

    Closing the channel ends every wait, so that no thread outlives a stopped run.

    Args:
        capacity: Maximum number of items, at least 1.
        lossless: Whether ``put`` waits for room; otherwise it drops the oldest item.
    """

    def __init__(self, capacity: int, *, lossless: bool) -> None:
        self._items: deque[Item] = deque()
        self._capacity = capacity
        self._lossless = lossless
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> Item | None:
        """Add an item.

        Returns:
            The dropped item: the oldest one, this one if the channel is closed, or None.
        """
        with self._changed:
            while self._lossless and len(self._items) >= self._capacity and not self._closed:
                self._changed.wait()
            if self._closed:
                return item
            dropped = self._items.popleft() if len(self._items) >= self._capacity else None
            self._items.append(item)
            self._changed.notify_all()
            return dropped

    def get(self, timeout_s: float | None = None) -> Item | None:
        """Take the oldest item; None after the timeout, or when the channel is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout_s)
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Accept no more items; the remaining ones can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)


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
        shared: Channel[Frame] = Channel(_INBOX_CAPACITY, lossless=not live)
        self._live = live
        self._channels = {side: shared if live else Channel[Frame](_INBOX_CAPACITY, lossless=True) for side in SIDES}
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
