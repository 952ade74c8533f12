"""The two layers over the CUDA driver: the calls they make, with stand-ins for pycuda and cuda-bindings."""

from __future__ import annotations

import ctypes
import enum
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import refusion_edge.cuda
from refusion_edge.cuda.driver import Driver
from refusion_edge.errors import BackendError
from tests.conftest import one_sentence

# cudaDevAttrs: what a Jetson answers.
ATTRIBUTES = {"COMPUTE_CAPABILITY_MAJOR": 8, "COMPUTE_CAPABILITY_MINOR": 7, "INTEGRATED": 1, "CAN_MAP_HOST_MEMORY": 1}


class FakeCuda:
    """The C functions of the driver, over the processor's memory; keeps what was called and what is still held."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.held: dict[int, Any] = {}
        self.fails: set[str] = set()
        self._handles = iter(range(0x100, 0x10000, 0x100))

    def hold(self, what: Any) -> int:
        address = what.ctypes.data if isinstance(what, np.ndarray) else next(self._handles)
        self.held[address] = what
        return int(address)


def bindings(cuda: FakeCuda) -> ModuleType:
    """``cuda.bindings.driver``: functions that return a code and then the results."""
    module = ModuleType("cuda.bindings.driver")
    module.CUresult = enum.IntEnum("CUresult", {"CUDA_SUCCESS": 0, "CUDA_ERROR_OUT_OF_MEMORY": 2, "CUDA_ERROR_UNKNOWN": 999})
    module.CUdevice_attribute = enum.Enum("Attribute", {f"CU_DEVICE_ATTRIBUTE_{name}": name for name in ATTRIBUTES})
    module.CUstream_flags = enum.Enum("Flags", {"CU_STREAM_NON_BLOCKING": 1})
    module.CUstreamCaptureMode = enum.Enum("Mode", {"CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1})
    module.CU_MEMHOSTALLOC_DEVICEMAP = 2

    def offer(name: str, work: Any) -> None:
        def function(*arguments: Any) -> tuple[Any, ...]:
            cuda.calls.append(name)
            if name in cuda.fails:
                code = "CUDA_ERROR_OUT_OF_MEMORY" if name == "cuMemAlloc" else "CUDA_ERROR_UNKNOWN"
                return (module.CUresult[code], None)
            result = work(*arguments)
            return (module.CUresult(0),) if result is None else (module.CUresult(0), *np.atleast_1d(np.array(result, object)))

        function.__name__ = name
        setattr(module, name, function)

    def nothing(*_: Any) -> None:
        return None

    def release(address: int) -> None:
        del cuda.held[address]

    def allocate(nbytes: int, *_: Any) -> int:
        return cuda.hold(np.zeros(nbytes, np.uint8))

    def copy(to: int, source: int, nbytes: int, _: int) -> None:
        ctypes.memmove(to, source, nbytes)

    for name in ("cuInit", "cuCtxPushCurrent", "cuStreamSynchronize", "cuStreamBeginCapture", "cuGraphLaunch"):
        offer(name, nothing)
    offer("cuCtxPopCurrent", lambda: 1)
    offer("cuDeviceGet", lambda ordinal: ordinal)
    offer("cuDevicePrimaryCtxRetain", lambda _: cuda.hold("context"))
    offer("cuDevicePrimaryCtxRelease", lambda _: release(next(key for key, value in cuda.held.items() if value == "context")))
    offer("cuDeviceGetName", lambda length, _: b"Orin\0" + b"x" * (length - 5))
    offer("cuDeviceGetAttribute", lambda attribute, _: ATTRIBUTES[attribute.value])
    offer("cuDriverGetVersion", lambda: 12060)
    offer("cuMemGetInfo", lambda: (1 << 20, 8 << 20))
    for name in ("cuMemAlloc", "cuMemHostAlloc"):
        offer(name, allocate)
    for name in ("cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuGraphDestroy", "cuGraphExecDestroy"):
        offer(name, release)
    offer("cuMemHostGetDevicePointer", lambda address, _: address)
    offer("cuStreamCreate", lambda flags: cuda.hold(f"stream {flags}"))
    offer("cuStreamEndCapture", lambda _: cuda.hold("recorded"))
    offer("cuGraphInstantiate", lambda recorded, _: cuda.hold("graph"))
    for name in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"):
        offer(name, copy)
    return module


def pycuda(cuda: FakeCuda) -> ModuleType:
    """``pycuda.driver``: objects that release themselves."""
    module = ModuleType("pycuda.driver")
    module.Error = type("Error", (Exception,), {})
    module.MemoryError = type("MemoryError", (module.Error,), {})
    module.device_attribute = SimpleNamespace(INTEGRATED="INTEGRATED", CAN_MAP_HOST_MEMORY="CAN_MAP_HOST_MEMORY")
    module.host_alloc_flags = SimpleNamespace(DEVICEMAP=2)

    class Held:
        def __init__(self, what: Any) -> None:
            self.what, self.handle = what, cuda.hold(what)

        def __int__(self) -> int:
            return self.handle

        def free(self) -> None:
            del cuda.held[self.handle]

        get_device_pointer = __int__
        push = pop = lambda self: cuda.calls.append("context")
        detach = free

        def synchronize(self) -> None:
            cuda.calls.append("synchronize")

    class Stream(Held):
        def __init__(self, flags: int) -> None:
            super().__init__(f"stream {flags}")

        def __del__(self) -> None:
            self.free()

    def allocate(nbytes: int) -> Held:
        if "cuMemAlloc" in cuda.fails:
            raise module.MemoryError("out of memory")
        return Held(np.zeros(nbytes, np.uint8))

    def pagelocked(nbytes: int, dtype: Any, mem_flags: int) -> Any:
        return SimpleNamespace(base=Held(np.zeros(nbytes, dtype)), flags=mem_flags)

    module.init = lambda: None
    module.Device = lambda ordinal: SimpleNamespace(
        compute_capability=lambda: (8, 7),
        name=lambda: "Orin",
        get_attribute=ATTRIBUTES.__getitem__,
        retain_primary_context=lambda: Held("context"),
    )
    module.get_driver_version = lambda: 12060
    module.mem_get_info = lambda: (1 << 20, 8 << 20)
    module.mem_alloc = allocate
    module.Stream = Stream
    module.pagelocked_empty = lambda *arguments, **options: _array(pagelocked(*arguments, **options))
    module.memcpy_htod_async = lambda to, array, stream: ctypes.memmove(to, array.ctypes.data, array.nbytes)
    module.memcpy_dtoh_async = lambda array, source, stream: ctypes.memmove(array.ctypes.data, source, array.nbytes)
    return module


def _array(locked: SimpleNamespace) -> np.ndarray:
    """An array whose ``base`` is what pycuda puts there."""

    class Locked(np.ndarray):
        base = locked.base

    return locked.base.what.view(Locked)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture(params=["cuda-bindings", "pycuda"])
def driver(request: pytest.FixtureRequest, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Driver:
    if request.param == "pycuda":
        fake, names, home = pycuda(cuda), ("pycuda",), "refusion_edge.cuda.pycuda_driver"
    else:
        fake, names, home = bindings(cuda), ("cuda", "cuda.bindings"), "refusion_edge.cuda.bindings_driver"
    for name in names:
        package = ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(sys.modules[names[-1]], "driver", fake, raising=False)
    monkeypatch.delitem(sys.modules, home, raising=False)
    module = importlib.import_module(home)
    opened: Driver = (module.PycudaDriver if request.param == "pycuda" else module.BindingsDriver)()
    return opened


def test_a_device_describes_itself(driver: Driver) -> None:
    assert str(driver.device) == "Orin, compute capability 8.7, driver for CUDA 12.6"
    assert driver.device.is_zero_copy


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_uploaded_comes_back_and_everything_is_released(driver: Driver, cuda: FakeCuda, mapped: bool) -> None:
    with driver:
        stream = driver.create_stream()
        assert cuda.held[stream] == "stream 1"
        there, back = (driver.allocate_host(64, mapped=mapped) for _ in range(2))
        assert (there.pointer != 0) == mapped
        there.array[:] = np.arange(64)
        pointer = driver.allocate(64)
        driver.upload(pointer, there, stream)
        driver.download(back, pointer, stream)
        driver.synchronise(stream)
        assert np.array_equal(back.array, np.arange(64))
        for buffer in (there, back):
            driver.free_host(buffer)
        driver.free(pointer)
        driver.destroy_stream(stream)
    assert cuda.held == {}


def test_too_little_memory_is_told_in_numbers(driver: Driver, cuda: FakeCuda) -> None:
    cuda.fails.add("cuMemAlloc")
    with pytest.raises(
        BackendError, match=r"expected 64 MiB of device memory, got 1 MiB free of 8; .*smaller --size"
    ) as caught:
        driver.allocate(64 << 20)
    assert one_sentence(str(caught.value))


def test_work_is_recorded_and_replayed_where_there_are_graphs(driver: Driver, cuda: FakeCuda) -> None:
    stream = driver.create_stream()
    if not driver.can_capture:
        with pytest.raises(BackendError, match="install cuda-bindings"):
            driver.capture(stream, lambda: None)
        return
    cuda.calls.clear()
    graph = driver.capture(stream, lambda: cuda.calls.append("work"))
    driver.launch(graph, stream)
    driver.destroy_graph(graph)
    assert cuda.calls == [
        "cuStreamBeginCapture", "work", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy", "cuGraphLaunch",
        "cuGraphExecDestroy",
    ]  # fmt: skip
    assert "graph" not in cuda.held.values()


def test_recording_ends_even_where_the_work_fails(driver: Driver, cuda: FakeCuda) -> None:
    if not driver.can_capture:
        assert driver.name == "pycuda"  # records nothing
        return
    cuda.calls.clear()
    with pytest.raises(ZeroDivisionError):
        driver.capture(driver.create_stream(), lambda: 1 / 0)
    assert cuda.calls[-1] == "cuStreamEndCapture"
    for name in ("cuStreamSynchronize", "cuStreamBeginCapture", "cuGraphInstantiate"):
        cuda.fails = {name}
        with pytest.raises(BackendError, match=f"expected {name} to succeed, got CUDA_ERROR_UNKNOWN") as caught:
            driver.synchronise(0) if name == "cuStreamSynchronize" else driver.capture(0, lambda: None)
        assert one_sentence(str(caught.value))


def test_every_function_that_is_called_exists_in_cuda_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings, which can be imported without a driver")
    source = Path(refusion_edge.cuda.__file__).with_name("bindings_driver.py").read_text()
    used = set(re.findall(r"\bcu\.(\w+)", source))
    assert len(used) > 20
    assert [name for name in used if not hasattr(real, name)] == []
