"""Reports to systemd, as ``sd_notify`` does: that the stream runs, that it still does, and that it ends.

A unit with ``Type=notify`` counts as started with the first fused frame; with ``WatchdogSec=`` it is restarted if frames wait
but no more are fused. A lost camera is no reason to restart.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Watchdog:
    """Sends messages to the socket in ``NOTIFY_SOCKET``; without one it does nothing. For one thread.

    Args:
        environment: Variables that systemd sets: ``NOTIFY_SOCKET``, and ``WATCHDOG_USEC`` for the process ``WATCHDOG_PID``.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = f"\0{self._address[1:]}"  # an abstract socket
        asked, ours = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
        limit_s = int(asked) / 1e6 if asked.isdecimal() and ours == str(os.getpid()) else None
        # Half of the limit, as the manual advises.
        self._every_s = None if limit_s is None else limit_s / 2
        self._count = 0
        self._beat_s = 0.0
        self._started = False

    def watch(self, count: int, *, waiting: bool) -> None:
        """Report the state of the stream; call it often.

        Args:
            count: Fused frames so far.
            waiting: Whether pairs wait to be fused.
        """
        if not self._address:
            return
        if count and not self._started:
            self._started = True
            self._send("READY=1\nSTATUS=the first frame is fused")
        moves = count > self._count or not waiting
        now_s = time.monotonic()
        if self._every_s is not None and moves and now_s - self._beat_s >= self._every_s:
            self._count, self._beat_s = count, now_s
            self._send(f"WATCHDOG=1\nSTATUS={count} frames are fused")

    def stop(self) -> None:
        """Report that the stream ends."""
        if self._address:
            self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        # The stream does not depend on who listens.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), self._address)
