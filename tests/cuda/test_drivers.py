"""The two layers over the CUDA driver, and an engine on each: the calls they make of a library that takes notes."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import refusion_edge.cuda
from refusion_edge.arrays import State
from refusion_edge.backends.fused import FusedBackend
from refusion_edge.cuda.driver import Driver
from refusion_edge.cuda.program import unpack
from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.errors import BackendError
from tests.conftest import one_sentence
from tests.fakes.cuda_libraries import MS_BETWEEN_EVENTS, FakeLibrary, bindings, plain_library, pycuda
from tests.fakes.programs import hollow_program
from tests.raising import raises


@pytest.fixture
def library() -> FakeLibrary:
    return FakeLibrary()


@pytest.fixture(params=["cuda-bindings", "pycuda"])
def open_layer(request: pytest.FixtureRequest, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Driver]:
    """Open a layer over the library that takes notes."""
    if request.param == "pycuda":
        fake, names, home = pycuda(library), ("pycuda",), "refusion_edge.cuda.pycuda"
    else:
        fake, names, home = bindings(library), ("cuda", "cuda.bindings"), "refusion_edge.cuda.bindings"
    for name in names:
        package = ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(sys.modules[names[-1]], "driver", fake, raising=False)
    monkeypatch.delitem(sys.modules, home, raising=False)
    module = importlib.import_module(home)

    def opened() -> Driver:
        with monkeypatch.context() as patched:
            patched.setattr("ctypes.CDLL", lambda _: plain_library(library))
            layer: Driver = (module.PycudaDriver if request.param == "pycuda" else module.BindingsDriver)()
        return layer

    return opened


@pytest.fixture
def driver(open_layer: Callable[[], Driver]) -> Driver:
    return open_layer()


def test_a_device_describes_itself(driver: Driver) -> None:
    assert str(driver.device) == "Orin, compute capability 8.7, driver for CUDA 12.6"
    assert (driver.device.architecture, driver.device.driver_version) == (87, 12060)
    assert driver.device.is_zero_copy


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_uploaded_comes_back_and_everything_is_released(driver: Driver, library: FakeLibrary, mapped: bool) -> None:
    with driver:
        stream = driver.create_stream()
        assert library.held[stream] == "stream 1"
        there, back = (driver.allocate_host(64, mapped=mapped) for _ in range(2))
        assert (there.pointer != 0) == mapped
        there.array[:] = np.arange(64)
        pointer = driver.allocate(64)
        driver.upload(pointer, there, stream)
        driver.download(back, pointer, stream)
        driver.synchronize(stream)
        assert np.array_equal(back.array, np.arange(64))
        for buffer in (there, back):
            driver.free_host(buffer)
        driver.free(pointer)
        driver.destroy_stream(stream)
    assert library.held == {}


def test_too_little_memory_is_told_in_numbers(driver: Driver, library: FakeLibrary) -> None:
    library.fails.add("cuMemAlloc")
    with raises(BackendError, "device memory", expected=64 << 20, got=1 << 20):
        driver.allocate(64 << 20)


def test_too_little_page_locked_memory_is_told_in_numbers(driver: Driver, library: FakeLibrary) -> None:
    library.fails.add("cuMemHostAlloc")
    with raises(BackendError, "page-locked memory", expected=64 << 20):
        driver.allocate_host(64 << 20, mapped=True)


def test_the_memory_of_a_device_is_counted(driver: Driver) -> None:
    assert driver.memory() == (1 << 20, 8 << 20)


def test_events_keep_the_time_of_the_device(driver: Driver, library: FakeLibrary) -> None:
    with driver:
        stream = driver.create_stream()
        first, last = driver.create_event(), driver.create_event()
        for event in (first, last):
            driver.record(event, stream)
        library.calls.clear()
        assert driver.elapsed_ms(first, last) == MS_BETWEEN_EVENTS
        assert library.calls == ["cuEventSynchronize", "cuEventElapsedTime"]
        for event in (first, last):
            driver.destroy_event(event)
        driver.destroy_stream(stream)
    assert library.held == {}


def test_an_event_in_a_graph_keeps_the_time_of_every_run(driver: Driver, library: FakeLibrary) -> None:
    stream, event = driver.create_stream(), driver.create_event()
    library.calls.clear()
    driver.record(event, stream)
    driver.destroy_graph(driver.capture(stream, lambda: driver.record(event, stream)))
    driver.record(event, stream)
    with pytest.raises(ZeroDivisionError):
        driver.capture(stream, lambda: 1 / 0)
    driver.record(event, stream)
    ways = [call for call in library.calls if call.startswith("cuEventRecord")]
    # The driver refuses the flag outside of a recording.
    assert ways == ["cuEventRecord", "cuEventRecordWithFlags", "cuEventRecord", "cuEventRecord"]


def test_another_thread_borrows_the_context(driver: Driver, library: FakeLibrary) -> None:
    with driver, ThreadPoolExecutor(1) as elsewhere:
        library.calls.clear()

        def work() -> None:
            with driver.current():
                driver.destroy_stream(driver.create_stream())

        work()
        assert library.calls == ["cuStreamCreate", "cuStreamDestroy"]
        elsewhere.submit(work).result()
        assert library.calls[2:] == ["cuCtxPushCurrent", "cuStreamCreate", "cuStreamDestroy", "cuCtxPopCurrent"]
    assert library.held == {}


def test_a_kernel_gets_its_block_and_asks_for_shared_memory_above_48_kib(driver: Driver, library: FakeLibrary) -> None:
    with driver:
        stream = driver.create_stream()
        small, large = (driver.load(b"cubin", symbol, nbytes) for symbol, nbytes in (("f", 48 << 10), ("g", 99 << 10)))
        assert small != large
        assert list(library.limits.values()) == [99 << 10]
        driver.launch_kernel(large, (3, 2, 1), 64, 99 << 10, b"x" * 24, stream)
        assert [launch[1:] for launch in library.launches] == [((3, 2, 1), 64, 99 << 10, stream, b"x" * 24)]
        driver.destroy_stream(stream)
    assert library.held == {}


def test_work_is_recorded_and_replayed(driver: Driver, library: FakeLibrary) -> None:
    stream = driver.create_stream()
    library.calls.clear()
    graph = driver.capture(stream, lambda: library.calls.append("work"))
    driver.launch(graph, stream)
    driver.destroy_graph(graph)
    assert library.calls == [
        "cuStreamBeginCapture", "work", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy", "cuGraphLaunch",
        "cuGraphExecDestroy",
    ]  # fmt: skip
    assert not {"graph", "recorded"} & {kept for kept in library.held.values() if isinstance(kept, str)}


def test_recording_ends_even_where_the_work_fails(driver: Driver, library: FakeLibrary) -> None:
    stream = driver.create_stream()
    with pytest.raises(ZeroDivisionError):
        driver.capture(stream, lambda: 1 / 0)
    assert library.calls[-1] == "cuStreamEndCapture"
    library.fails = {"cuStreamEndCapture"}
    with pytest.raises(ZeroDivisionError):
        driver.capture(stream, lambda: 1 / 0)


@pytest.mark.parametrize("fail", ["cuStreamBeginCapture", "cuGraphInstantiate", "cuGraphLaunch", "cuStreamSynchronize"])
def test_what_the_driver_refuses_is_one_sentence(driver: Driver, library: FakeLibrary, fail: str) -> None:
    stream = driver.create_stream()
    library.fails = {fail}

    def work() -> None:
        driver.launch(driver.capture(stream, lambda: None), stream)
        driver.synchronize(stream)

    with raises(BackendError, fail):
        work()
    assert "recorded" not in [kept for kept in library.held.values() if isinstance(kept, str)]


def test_a_frame_is_recorded_once_and_everything_is_given_back(
    driver: Driver, library: FakeLibrary, random_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FusedBackend, "_test_itself", lambda _: None)  # nothing is computed here
    program = hollow_program(random_state, 87)
    with FusedBackend(program_bytes(program), driver=driver) as engine:
        plane = np.zeros((1, 1, 20, 70), np.float32)
        for _ in range(3):
            engine.fuse(plane, plane)
        names = library.calls
        assert names.count("cuLaunchKernel") == len(program.schedule.launches) == 25
        assert names.count("cuGraphLaunch") == 3
        assert names.index("cuStreamBeginCapture") < names.index("cuLaunchKernel") < names.index("cuStreamEndCapture")
        assert names.count("cuMemcpyHtoDAsync") == 1  # the weights; an integrated device reads pictures where they are
        large = [binary.shared_bytes for binary in program.targets[87].binaries.values() if binary.shared_bytes > 48 * 1024]
        assert list(library.limits.values()) == large
        engine.fuse(plane[..., :64], plane[..., :64])
        assert [kept for kept in library.held.values() if isinstance(kept, str)].count("graph") == 1
    assert library.held == {}
    stem = program.schedule.kernels["stem"]
    assert unpack(stem.parameters, library.launches[0][-1], 2)[-2:] == [20, 70]


@pytest.mark.parametrize(
    "fail", ["cuInit", "cuMemAlloc", "cuModuleLoadData", "cuStreamCreate", "cuStreamEndCapture", "cuMemHostAlloc"]
)
def test_an_engine_that_does_not_open_says_so_and_leaks_nothing(
    open_layer: Callable[[], Driver], library: FakeLibrary, random_state: State, fail: str
) -> None:
    library.fails = {fail}
    with pytest.raises(BackendError) as caught:
        FusedBackend(program_bytes(hollow_program(random_state, 87)), driver=open_layer())
    assert one_sentence(str(caught.value))
    del caught  # what the traceback still refers to is not released by pycuda
    assert library.held == {}


def test_every_function_that_is_called_exists_in_cuda_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings, which can be imported without a driver")
    source = Path(refusion_edge.cuda.__file__).with_name("bindings.py").read_text()
    used = set(re.findall(r"\bcu\.(\w+)", source))
    assert len(used) > 30
    assert [name for name in used if not hasattr(real, name)] == []
