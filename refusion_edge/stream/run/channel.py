"""A bounded queue between two threads that can be closed from either end."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


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
