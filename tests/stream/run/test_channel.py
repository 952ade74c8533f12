"""Bounded queues."""

from __future__ import annotations

import threading
import time

from refusion_edge.stream.run.channel import Channel


def test_channel_waits_or_drops_and_always_ends() -> None:
    dropping: Channel[int] = Channel(2, lossless=False)
    assert [dropping.put(number) for number in range(4)] == [None, None, 0, 1]
    assert [dropping.get(), dropping.get(), dropping.get(0.01)] == [2, 3, None]
    waiting: Channel[int] = Channel(1, lossless=True)
    waiting.put(1)
    late: list[int | None] = []
    thread = threading.Thread(target=lambda: late.append(waiting.put(2)))
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    waiting.close()
    thread.join(2)
    assert late == [2]
    assert waiting.get() == 1
    assert waiting.get() is None
