"""The door of the browser view: who may connect, how often, and for how long without being authorized.

Cameras, engine and recorder share their file descriptors with the viewers, so the number of connections has a limit. Anybody
who reaches the port can open connections; therefore one that is not authorized within seconds is closed, and is the first to go
when there are too many.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the connections.

    Attributes:
        total: Connections in all.
        waiting: Connections from one address that are not authorized yet.
        waiting_s: Seconds after which such a connection is closed.
    """

    total: int = 128
    waiting: int = 16
    waiting_s: float = 5.0


LIMITS = Limits()


class Connections:
    """Accepts connections within limits. All methods belong into the thread of the event loop.

    Args:
        limits: The limits.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._authorized: set[asyncio.BaseTransport] = set()
        # The oldest one comes first.
        self._waiting: dict[asyncio.BaseTransport, tuple[str, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        self._forget_closed()
        return len(self._authorized) + len(self._waiting)

    async def accept(self, listening: socket.socket, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Accept connections until this task is cancelled.

        Args:
            listening: A listening socket.
            factory: Makes the protocol of a connection.
        """
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                connected, peer = await loop.sock_accept(listening)
            except OSError:
                # The descriptors of the process have run out, or the peer is gone already.
                await asyncio.sleep(_RETRY_S)
                continue
            address = str(peer[0])
            if not self._has_room(address):
                connected.close()
                continue
            with contextlib.suppress(OSError):
                transport, _ = await loop.connect_accepted_socket(factory, connected)
                self._waiting[transport] = (address, loop.call_later(self._limits.waiting_s, self._close, transport))

    def authorize(self, transport: asyncio.BaseTransport | None) -> None:
        """Note that a connection is authorized: it stays open for as long as its requests want."""
        if transport in self._waiting:
            assert transport is not None
            _, timer = self._waiting.pop(transport)
            timer.cancel()
            self._authorized.add(transport)

    def _has_room(self, address: str) -> bool:
        if len(self) >= self._limits.total and self._waiting:
            self._close(next(iter(self._waiting)))
        waiting = sum(other == address for other, _ in self._waiting.values())
        return len(self) < self._limits.total and waiting < self._limits.waiting

    def _close(self, transport: asyncio.BaseTransport) -> None:
        _, timer = self._waiting.pop(transport)
        timer.cancel()
        # Without waiting for data that the peer may never take.
        getattr(transport, "abort", transport.close)()

    def _forget_closed(self) -> None:
        self._authorized = {transport for transport in self._authorized if not transport.is_closing()}
        for transport in [transport for transport in self._waiting if transport.is_closing()]:
            _, timer = self._waiting.pop(transport)
            timer.cancel()
