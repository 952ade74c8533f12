"""Engines on the CUDA driver layers: device time, wall time, and leaks. Needs no torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Float32Array
from refusion_edge.backends.registry import Backend
from refusion_edge.cuda.driver import Driver

Row = dict[str, Any]
OpenEngine = Callable[[Driver], Backend]


class _Leaks(Protocol):
    def __call__(self) -> float: ...


class TimedDriver:
    """A driver that puts events around every graph it starts. Implements ``Driver`` by handing everything else on.

    Attributes:
        graphs_ms: Time of each graph that was started and waited for.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._events: tuple[int, int] | None = None
        self._running = False
        self.graphs_ms: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def __enter__(self) -> Self:
        self._driver.__enter__()
        self._events = self._driver.create_event(), self._driver.create_event()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for event in self._events or ():
            self._driver.destroy_event(event)
        self._driver.__exit__(kind, error, traceback)

    def launch(self, graph: Any, stream: int) -> None:
        """Start a graph between two events."""
        if self._events is None:
            raise RuntimeError("the driver was not entered")
        self._driver.record(self._events[0], stream)
        self._driver.launch(graph, stream)
        self._driver.record(self._events[1], stream)
        self._running = True

    def synchronize(self, stream: int) -> None:
        """Wait, and note the time of the graph that was waited for."""
        self._driver.synchronize(stream)
        if self._running and self._events is not None:
            self.graphs_ms.append(self._driver.elapsed_ms(*self._events))
            self._running = False


def time_engine(name: str, driver: Driver, open_engine: OpenEngine, sizes_hw: list[tuple[int, int]], rounds: int) -> list[Row]:
    """Time an engine at some sizes.

    Args:
        name: What to call it.
        driver: The device; closed with the engine.
        open_engine: Opens the engine on a driver.
        sizes_hw: Height and width of each image.
        rounds: Frames that count, after three that do not.

    Returns:
        A row for each size: medians of the graph on the device (copies of a discrete device included), and of the whole
        call on the wall.
    """
    timed = TimedDriver(driver)
    rows = []
    with open_engine(timed) as engine:
        for size_hw in sizes_hw:
            a, b = planes(size_hw)
            for _ in range(3):
                engine.fuse(a, b)
            timed.graphs_ms.clear()
            walls_ms = []
            for _ in range(rounds):
                started = time.perf_counter()
                engine.fuse(a, b)
                walls_ms.append(1e3 * (time.perf_counter() - started))
            rows.append(
                {
                    "name": name,
                    "size_hw": list(size_hw),
                    "device_ms": statistics.median(timed.graphs_ms) if timed.graphs_ms else None,
                    "wall_ms": statistics.median(walls_ms),
                }
            )
    return rows


def watch_for_leaks(
    driver: Driver,
    open_engine: OpenEngine,
    free_bytes: Callable[[], int],
    *,
    frames: int,
    changes: int,
    size_hw: tuple[int, int] = (120, 160),
) -> Row:
    """Fuse many frames and change the size many times; memory lost afterwards is a leak.

    Args:
        driver: The device; closed with the engine.
        open_engine: Opens the engine on a driver.
        free_bytes: Free memory of the device.
        frames: Frames of one size.
        changes: Changes of size.
        size_hw: The size.
    """
    height, width = size_hw
    with open_engine(driver) as engine:
        a, b = planes(size_hw)
        first = engine.fuse(a, b).copy()
        for index in range(4):
            engine.fuse(*planes((height + index % 2, width)))
        engine.fuse(a, b)
        before = free_bytes()
        for _ in range(frames):
            engine.fuse(a, b)
        for index in range(changes):
            engine.fuse(*planes((height + index % 2, width)))
        last = engine.fuse(a, b)
        return {
            "frames": frames,
            "changes": changes,
            "lost_bytes": before - free_bytes(),
            "same": bool(np.array_equal(first, last)),
        }


def planes(size_hw: tuple[int, int]) -> tuple[Float32Array, Float32Array]:
    """Two random planes, (1, 1, H, W)."""
    draw = np.random.default_rng(1)
    a, b = (draw.random((1, 1, *size_hw), np.float32) for _ in range(2))
    return a, b
