"""Stopping a run between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
from types import FrameType

from typing_extensions import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Takes note of Ctrl-C and SIGTERM while it is open; a second one interrupts at once.

    Attributes:
        received: Name of the signal, or empty.
    """

    def __init__(self) -> None:
        self.received = ""
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        try:
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        except ValueError:  # not in the main thread, where no signal arrives anyway
            self._previous = {}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
