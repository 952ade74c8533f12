"""The door of the browser view: who may connect, how often, and for how long without being authorized.

Cameras, engine and recorder share their file descriptors with the viewers, so the number of connections has a limit. Anybody
who reaches the port can open connections; therefore one that is not authorized within seconds is closed, and is the first to go
when there are too many.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
    """Accepts connections within limits. Call its methods only from the thread of the event loop.

    Args:
        limits: The limits.
        tls: Makes the connections encrypted, or None.
    """

    def __init__(self, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self._limits, self._tls = limits, tls
        self._authorized: set[asyncio.BaseTransport] = set()
        # Those that are not authorized, by address, the oldest first. A task stands for a connection until it is encrypted.
        self._waiting: dict[asyncio.BaseTransport | asyncio.Task[None], str] = {}

    def __len__(self) -> int:
        self._authorized = {transport for transport in self._authorized if not transport.is_closing()}
        self._waiting = {entry: address for entry, address in self._waiting.items() if not _is_gone(entry)}
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
            if self._has_room(address):
                task = loop.create_task(self._greet(connected, address, factory))
                # A task that is cancelled may never have begun.
                task.add_done_callback(partial(_close_unless_greeted, connected))
                self._waiting[task] = address
            else:
                connected.close()

    def close(self) -> None:
        """Close all connections that are not authorized."""
        for entry in list(self._waiting):
            self._close(entry)

    def authorize(self, transport: asyncio.BaseTransport | None) -> None:
        """Note that a connection is authorized: it stays open for as long as its requests want."""
        if transport is not None and self._waiting.pop(transport, None) is not None:
            self._authorized.add(transport)

    async def _greet(self, connected: socket.socket, address: str, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await asyncio.wait_for(
                loop.connect_accepted_socket(factory, connected, ssl=self._tls), self._limits.waiting_s
            )
        except (OSError, asyncio.TimeoutError):
            connected.close()
            return
        # A cancellation that comes when the connection is just ready gets lost in wait_for.
        task = asyncio.current_task()
        if task is None or self._waiting.pop(task, None) is None:
            transport.abort()
            return
        self._waiting[transport] = address
        loop.call_later(self._limits.waiting_s, self._close, transport)

    def _has_room(self, address: str) -> bool:
        if len(self) >= self._limits.total and self._waiting:
            self._close(next(iter(self._waiting)))
        waiting = sum(other == address for other in self._waiting.values())
        return len(self) < self._limits.total and waiting < self._limits.waiting

    def _close(self, entry: asyncio.BaseTransport | asyncio.Task[None]) -> None:
        if self._waiting.pop(entry, None) is None:
            return
        if isinstance(entry, asyncio.Task):
            entry.cancel()
        else:
            # Without waiting for data that the peer may never take.
            getattr(entry, "abort", entry.close)()


def _close_unless_greeted(connected: socket.socket, task: asyncio.Task[None]) -> None:
    if task.cancelled():
        connected.close()


def _is_gone(entry: asyncio.BaseTransport | asyncio.Task[None]) -> bool:
    return entry.done() if isinstance(entry, asyncio.Task) else entry.is_closing()
