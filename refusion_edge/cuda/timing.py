"""Times of the stages of a run, measured on the device with an event before and after each."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator

from refusion_edge.cuda.driver import Driver


class StageTimer:
    """Times the stages of a run on a stream.

    It is off at first, because events become part of a recorded graph; graphs recorded before ``start`` have none.

    Args:
        driver: The device.
        stream: Where the stages run, one after the other.
    """

    def __init__(self, driver: Driver, stream: int) -> None:
        self._driver, self._stream = driver, stream
        self._is_on = False
        self._events: dict[str, tuple[int, int]] = {}

    def start(self) -> None:
        """Time every stage from now on."""
        self._is_on = True

    def close(self) -> None:
        """Release the events."""
        while self._events:
            for event in self._events.popitem()[1]:
                self._driver.destroy_event(event)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the work started on the stream within this context."""
        if not self._is_on:
            yield
            return
        if name not in self._events:
            self._events[name] = self._driver.create_event(), self._driver.create_event()
        first, last = self._events[name]
        self._driver.record(first, self._stream)
        yield
        self._driver.record(last, self._stream)

    def times_ms(self) -> dict[str, float]:
        """Time of each stage of the last run, in the order in which they first ran."""
        return {name: self._driver.elapsed_ms(*events) for name, events in self._events.items()}


class StagesOnDevice(ABC):
    """A back end that times its stages on the device when asked to; see ``refusion_edge.bench.measurement.DeviceTimed``."""

    _timer: StageTimer

    def time_stages(self) -> None:
        """Time the stages of every later run."""
        self._timer.start()
        # The graphs recorded so far hold no events.
        self._prepare_anew()

    def device_stages_ms(self) -> dict[str, float]:
        """Times of the stages of the last run."""
        return self._timer.times_ms()

    @abstractmethod
    def _prepare_anew(self) -> None:
        """Make the next run prepare its size again."""
