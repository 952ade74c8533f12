"""What several rigs in one process share: engines, which they use in fair turns, and the page.

An engine works on one pair at a time. Rigs wait for their turn, which goes to the rig that has used the least engine time so
far, relative to its share. A rig gains no credit for time in which it did not use the engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

from typing_extensions import Self

from refusion_edge.arrays import Array, Float32Array, Float64Array, Uint8Array
from refusion_edge.backends.registry import Backend
from refusion_edge.fuser import Fuser
from refusion_edge.stream.outputs.server import PageServer
from refusion_edge.stream.run.recovery import RecoveringBackend, WrappedBackend
from refusion_edge.stream.statistics import Statistics

Result = TypeVar("Result")


class Turns:
    """Hands out turns by used time. Every user waits for one turn at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._used_s: dict[str, float] = {}
        self._waiting: list[str] = []
        self._taken = False
        self._now_s = 0.0  # what the last one who got a turn had used by then

    def take(self, user: str) -> None:
        """Wait for a turn; call ``give_back`` after it."""
        with self._changed:
            # Credit from idle times would let a rig keep the others out for as long.
            self._used_s[user] = max(self._used_s.get(user, 0.0), self._now_s)
            self._waiting.append(user)
            self._changed.wait_for(lambda: not self._taken and user == self._next())
            self._waiting.remove(user)
            self._taken, self._now_s = True, self._used_s[user]

    def give_back(self, user: str, used_s: float, share: float) -> None:
        """End a turn.

        Args:
            user: Name of the user.
            used_s: Duration of the turn.
            share: Share of the user; twice the share gets twice the time.
        """
        with self._changed:
            self._used_s[user] += used_s / share
            self._taken = False
            self._changed.notify_all()

    def _next(self) -> str:
        return min(self._waiting, key=lambda user: self._used_s[user])


@dataclass(slots=True)
class _Entry:
    """An engine of the pool.

    Attributes:
        fuser: The engine.
        turns: Whose turn it is.
        reports_to: Counters of the rig whose turn it is.
        leases: Number of rigs that use it.
    """

    fuser: Fuser
    turns: Turns = field(default_factory=Turns)
    reports_to: list[Statistics] = field(default_factory=list)
    leases: int = 0


class EnginePool:
    """Shared engines, each opened once and closed with its last lease. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}
        self._lock = threading.Lock()

    def lease(self, key: Hashable, open_engine: Callable[[], Fuser], user: str, share: float, statistics: Statistics) -> Fuser:
        """Use an engine together with others.

        Args:
            key: What determines the engine; equal keys share one.
            open_engine: Opens it.
            user: Name of the rig.
            share: Its share of the time, relative to the other rigs.
            statistics: Counters of the rig, where failures in its turns are counted.

        Returns:
            A fuser; closing it ends the lease.

        Raises:
            RefusionError: It cannot be opened.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                opened = open_engine()
                reports_to: list[Statistics] = []

                def reopened(text: str, reports_to: list[Statistics] = reports_to) -> None:
                    reports_to[-1].reopened(text)

                backend = RecoveringBackend(opened.backend, lambda: open_engine().backend, reopened)
                backend.__enter__()
                fuser = Fuser(backend, opened.task, opened.output_range, opened.choice, network=opened.network)
                entry = self._entries[key] = _Entry(fuser, reports_to=reports_to)
            entry.leases += 1
        shared = entry.fuser
        lease = Lease(shared.backend, entry.turns, entry.reports_to, lambda: self._return(key), user, share, statistics)
        return Fuser(lease, shared.task, shared.output_range, shared.choice, network=shared.network)

    def _return(self, key: Hashable) -> None:
        with self._lock:
            entry = self._entries[key]
            entry.leases -= 1
            if not entry.leases:
                del self._entries[key]
                entry.fuser.__exit__(None, None, None)


class Lease(WrappedBackend):
    """A rig's use of a shared engine. Implements the protocols of back ends as far as the engine does.

    Args:
        backend: The engine.
        turns: Whose turn it is.
        reports_to: Where the engine looks for the counters of the rig whose turn it is.
        end: Ends the lease.
        user: Name of the rig.
        share: Its share.
        statistics: Its counters.
    """

    def __init__(
        self,
        backend: Backend,
        turns: Turns,
        reports_to: list[Statistics],
        end: Callable[[], None],
        user: str,
        share: float,
        statistics: Statistics,
    ) -> None:
        self.name = backend.name
        self._backend, self._turns, self._reports_to, self._end = backend, turns, reports_to, end
        self._user, self._share, self._statistics = user, share, statistics
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._ended:
            self._ended = True
            self._end()

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """See ``Backend``."""
        # The engine may give the next rig the same memory.
        return self._in_turn(lambda engine: engine.fuse(a, b).copy())

    def fuse_uint8(self, a: Array, b: Array) -> Uint8Array:
        """See ``Uint8OutputBackend``."""
        return self._in_turn(lambda engine: engine.fuse_uint8(a, b))  # type: ignore[attr-defined]

    def statistics(self, a: Float32Array, b: Float32Array) -> Float64Array:
        """See ``AdaptedBackend``."""
        return self._in_turn(lambda engine: engine.statistics(a, b))  # type: ignore[attr-defined]

    def fuse_adapted(self, a: Float32Array, b: Float32Array, figures: Float64Array) -> Float32Array:
        """See ``AdaptedBackend``."""
        return self._in_turn(lambda engine: engine.fuse_adapted(a, b, figures).copy())  # type: ignore[attr-defined]

    def _in_turn(self, call: Callable[[Backend], Result]) -> Result:
        self._turns.take(self._user)
        started_s = time.monotonic()
        try:
            self._reports_to[:] = [self._statistics]
            return call(self._backend)
        finally:
            self._turns.give_back(self._user, time.monotonic() - started_s, self._share)


@dataclass(frozen=True, slots=True)
class Shared:
    """What a rig has in common with the others of its process.

    Attributes:
        rig: Its name.
        engines: The engines.
        page: The page, or None.
        share: Its share of the engines' time.
    """

    rig: str
    engines: EnginePool
    page: PageServer | None = None
    share: float = 1.0
