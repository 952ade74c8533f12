"""Engines that fail while a stream runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest

from refusion_edge.arrays import Float32Array
from refusion_edge.backends.native import NativeBackend
from refusion_edge.errors import BackendError, ShapeError, StreamError
from refusion_edge.stream.run.recovery import MOST_REOPENED, RecoveringBackend
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from refusion_edge.stream.statistics import Statistics
from tests.raising import raises
from tests.stream.conftest import MeanBackend, camera

PLANES = np.zeros((1, 1, 8, 8), np.float32), np.ones((1, 1, 8, 8), np.float32)


class Failing(MeanBackend):
    """Fails at the calls of these numbers, counted over all engines that were opened."""

    calls = 0

    def __init__(self, at: Callable[[int], bool], error: Exception) -> None:
        super().__init__()
        self._at, self._error = at, error
        self.closed = False

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        assert not self.closed
        number, Failing.calls = Failing.calls, Failing.calls + 1
        if self._at(number):
            raise self._error
        return super().fuse(a, b)


def recovering(
    at: Callable[[int], bool], error: Exception | None = None
) -> tuple[RecoveringBackend, Statistics, list[Failing]]:
    Failing.calls = 0
    opened: list[Failing] = []

    def open_engine() -> Failing:
        opened.append(Failing(at, error or RuntimeError("CUDA error: unspecified launch failure")))
        return opened[-1]

    statistics = Statistics()
    return RecoveringBackend(open_engine(), open_engine, statistics.reopened), statistics, opened


@pytest.mark.parametrize("error", [RuntimeError("boom"), BackendError("the device is gone"), MemoryError()])
def test_an_engine_that_fails_once_is_reopened_and_fuses_the_same_planes(error: Exception) -> None:
    backend, statistics, opened = recovering(lambda number: number == 1, error)
    with backend:
        assert all(float(backend.fuse(*PLANES).mean()) == 0.5 for _ in range(3))
    assert [engine.closed for engine in opened] == [True, True]
    figures = statistics.snapshot()
    assert figures["engine"]["reopened"] == 1
    assert [event["where"] for event in figures["events"]] == ["engine"]


def test_an_engine_that_fails_always_ends_the_stream_with_its_reason() -> None:
    backend, _, opened = recovering(lambda _number: True)
    with backend, raises(StreamError, "mean", "unspecified launch failure", remedy="selftest"):
        backend.fuse(*PLANES)
    assert len(opened) == 2


def test_an_engine_that_fails_again_and_again_ends_the_stream() -> None:
    backend, statistics, opened = recovering(lambda number: number % 2 == 0)
    with backend, raises(StreamError, str(MOST_REOPENED)):
        for _ in range(100):
            backend.fuse(*PLANES)
    assert statistics.snapshot()["engine"]["reopened"] == MOST_REOPENED == len(opened) - 1


def test_an_engine_that_cannot_be_reopened_ends_the_stream() -> None:
    def gone() -> MeanBackend:
        raise BackendError("there is no GPU", "install one")

    backend = RecoveringBackend(Failing(lambda _number: True, RuntimeError("boom")), gone, Statistics().reopened)
    with raises(StreamError, "boom", "there is no GPU"):
        backend.fuse(*PLANES)


def test_an_engine_is_closed_once_and_opened_by_the_next_frame_if_it_could_not_be_reopened() -> None:
    class ClosedOnce(Failing):
        def __exit__(self, *exc: object) -> None:
            assert not self.closed
            super().__exit__(*exc)

    Failing.calls = 0
    opened: list[ClosedOnce] = []
    gone = [True]

    def open_engine() -> ClosedOnce:
        if gone[0]:
            raise BackendError("there is no GPU", "install one")
        opened.append(ClosedOnce(lambda _number: False, RuntimeError("boom")))
        return opened[-1]

    first = ClosedOnce(lambda _number: True, RuntimeError("boom"))
    backend = RecoveringBackend(first, open_engine, Statistics().reopened)
    with backend:
        with raises(StreamError, "boom", "there is no GPU"):
            backend.fuse(*PLANES)
        gone[0] = False
        assert float(backend.fuse(*PLANES).mean()) == 0.5
    assert first.closed
    assert [engine.closed for engine in opened] == [True]
    gone[0] = True
    with (
        RecoveringBackend(
            ClosedOnce(lambda _number: True, RuntimeError("boom")), open_engine, Statistics().reopened
        ) as backend,
        raises(StreamError, "there is no GPU"),
    ):
        backend.fuse(*PLANES)


def test_an_engine_that_fails_while_it_is_closed_is_reopened() -> None:
    class Lost(Failing):
        def __exit__(self, *exc: object) -> None:
            raise BackendError("CUDA error: the device is lost")

    with RecoveringBackend(Lost(lambda _number: True, RuntimeError("boom")), MeanBackend, Statistics().reopened) as backend:
        assert float(backend.fuse(*PLANES).mean()) == 0.5


def test_wrong_planes_are_no_failure_of_the_engine() -> None:
    backend, statistics, _ = recovering(lambda _number: True, ShapeError("8x8"))
    with pytest.raises(ShapeError):
        backend.fuse(*PLANES)
    assert statistics.snapshot()["engine"]["reopened"] == 0


@pytest.fixture
def files() -> dict[str, Any]:
    return {side: camera(side, live=0, frames=6) for side in ("ir", "vis")} | {"outputs": ("null://",), "hash": True}


def test_a_stream_with_a_failure_gives_the_frames_of_one_without(files: dict[str, Any]) -> None:
    fuse, calls = NativeBackend.fuse_adapted, []

    def failing(backend: NativeBackend, *planes: Any) -> Float32Array:
        calls.append(1)
        if len(calls) == 3:
            raise BackendError("there is not enough memory")
        return fuse(backend, *planes)

    reports = []
    for replacement in (fuse, failing):
        with mock.patch.object(NativeBackend, "fuse_adapted", replacement):
            session = StreamSession(StreamSettings(**files, network="fast", backend="native", threads=1))
            session.run()
            reports.append(session.report())
    assert reports[0] is not None
    assert reports[1] is not None
    assert reports[0]["output_sha256"] == reports[1]["output_sha256"]
    assert [report["engine"]["reopened"] for report in reports if report] == [0, 1]
    assert [report["network"]["statistics"] for report in reports if report] == ["smoothed", "smoothed"]


def test_a_stream_whose_engine_fails_always_ends_with_one_error(files: dict[str, Any]) -> None:
    with mock.patch.object(NativeBackend, "fuse_adapted", side_effect=RuntimeError("boom")):
        session = StreamSession(StreamSettings(**files, network="fast", backend="native", threads=1))
        with raises(StreamError, "native", "boom"):
            session.run()
    report = session.report()
    assert report is not None
    assert report["pairs"]["shown"] == 0
