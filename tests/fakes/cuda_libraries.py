"""A fake CUDA driver library, as seen through pycuda, through cuda-bindings and through ctypes.

It works on host memory, records every call and everything that is still held, and fails where a test wants it to.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

# What a Jetson answers.
ATTRIBUTES = {"COMPUTE_CAPABILITY_MAJOR": 8, "COMPUTE_CAPABILITY_MINOR": 7, "INTEGRATED": 1, "CAN_MAP_HOST_MEMORY": 1}
CODES = {"CUDA_SUCCESS": 0, "CUDA_ERROR_OUT_OF_MEMORY": 2, "CUDA_ERROR_UNKNOWN": 999}
MS_BETWEEN_EVENTS = 2.5


class RefusedError(Exception):
    """The library refuses a call."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} failed")
        self.code = "CUDA_ERROR_OUT_OF_MEMORY" if name in ("cuMemAlloc", "cuMemHostAlloc") else "CUDA_ERROR_UNKNOWN"


def _copy(to: int, source: int, nbytes: int, _: int) -> None:
    ctypes.memmove(to, source, nbytes)


class FakeLibrary:
    """The C functions by name.

    Attributes:
        calls: Names of the functions that were called, in order.
        launches: Function, grid, threads, shared bytes, stream and block of arguments of each kernel.
        limits: Bytes of shared memory that were asked for, by function.
        held: What was made and not given back, by handle.
        fails: Functions that refuse.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.launches: list[tuple[Any, ...]] = []
        self.limits: dict[int, int] = {}
        self.held: dict[int, Any] = {}
        self.fails: set[str] = set()
        self._handles = iter(range(0x100, 0x1000000, 0x100))
        self._works: dict[str, Callable[..., Any]] = {
            "cuDeviceGet": lambda ordinal: ordinal,
            "cuCtxPopCurrent": lambda: 1,
            "cuDriverGetVersion": lambda: 12060,
            "cuMemGetInfo": lambda: (1 << 20, 8 << 20),
            "cuDevicePrimaryCtxRetain": lambda _: self.hold("context"),
            "cuDevicePrimaryCtxRelease": lambda _: self.drop(next(key for key, kept in self.held.items() if kept == "context")),
            "cuMemHostGetDevicePointer": lambda address, _: address,
            "cuModuleLoadData": lambda image: self.hold(("module", image)),
            "cuModuleGetFunction": lambda module, symbol: hash((module, symbol)) & 0xFFFFFF,
            "cuFuncSetAttribute": lambda function, _, nbytes: self.limits.update({function: nbytes}),
            "cuLaunchKernel": lambda *what: self.launches.append(what),
            "cuStreamCreate": lambda flags: self.hold(f"stream {flags}"),
            "cuEventCreate": lambda flags: self.hold(f"event {flags}"),
            "cuEventElapsedTime": lambda *_: MS_BETWEEN_EVENTS,
            "cuStreamEndCapture": lambda _: self.hold("recorded"),
            "cuGraphInstantiate": lambda *_: self.hold("graph"),
            **dict.fromkeys(("cuMemAlloc", "cuMemHostAlloc"), lambda nbytes, *_: self.hold(np.zeros(nbytes, np.uint8))),
            **dict.fromkeys(("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"), _copy),
            **dict.fromkeys(
                ("cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy",
                 "cuModuleUnload"), self.drop,
            ),
            **dict.fromkeys(
                ("cuInit", "cuCtxPushCurrent", "cuStreamSynchronize", "cuStreamBeginCapture", "cuGraphLaunch", "cuEventRecord",
                 "cuEventRecordWithFlags", "cuEventSynchronize"), lambda *_: None,
            ),
        }  # fmt: skip

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(self._works)

    def call(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        if name in self.fails:
            raise RefusedError(name)
        return self._works[name](*arguments)

    def hold(self, what: Any) -> int:
        address = what.ctypes.data if isinstance(what, np.ndarray) else next(self._handles)
        self.held[address] = what
        return int(address)

    def drop(self, handle: int) -> None:
        del self.held[handle]


def bindings(library: FakeLibrary) -> ModuleType:
    """``cuda.bindings.driver``: functions that return a code and then the results."""
    module = ModuleType("cuda.bindings.driver")
    module.CUresult = enum.IntEnum("CUresult", CODES)
    module.CUdevice_attribute = enum.Enum("Attribute", {f"CU_DEVICE_ATTRIBUTE_{name}": name for name in ATTRIBUTES})
    module.CUfunction_attribute = enum.Enum("Limit", {"CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": 8})
    module.CUstream_flags = enum.Enum("Flags", {"CU_STREAM_NON_BLOCKING": 1})
    module.CUevent_record_flags = enum.Enum("RecordFlags", {"CU_EVENT_RECORD_EXTERNAL": 1})
    module.CUevent_flags = enum.Enum("EventFlags", {"CU_EVENT_DEFAULT": 0})
    module.CUstreamCaptureMode = enum.Enum("Mode", {"CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1})
    module.CU_MEMHOSTALLOC_DEVICEMAP = 2

    def offer(name: str, work: Callable[..., Any]) -> None:
        def function(*arguments: Any) -> tuple[Any, ...]:
            try:
                result = work(*arguments)
            except RefusedError as failure:
                return (module.CUresult[failure.code], None)
            return (module.CUresult(0),) if result is None else (module.CUresult(0), *np.atleast_1d(np.array(result, object)))

        function.__name__ = name
        setattr(module, name, function)

    def launch(function: int, *rest: Any) -> None:
        *grid, threads, one, another, shared, stream, pointers, extra = rest
        assert (one, another, pointers) == (1, 1, 0)  # threads along x alone, no array of pointers beside the block
        said = (ctypes.c_void_p * 5).from_address(extra)
        assert (said[0], said[2], said[4]) == (1, 2, None)
        block = ctypes.string_at(said[1] or 0, ctypes.c_size_t.from_address(said[3] or 0).value)
        library.call("cuLaunchKernel", function, tuple(grid), threads, shared, stream, block)

    for name in library.functions:
        offer(name, lambda *arguments, name=name: library.call(name, *arguments))
    offer("cuDeviceGetName", lambda length, _: b"Orin\0" + b"x" * (length - 5))
    offer("cuDeviceGetAttribute", lambda attribute, _: ATTRIBUTES[attribute.value])
    offer("cuLaunchKernel", launch)
    return module


def plain_library(library: FakeLibrary) -> Any:
    """The library through ctypes, as far as pycuda lacks names: graphs and events."""

    def returning_code(name: str, work: Callable[..., None]) -> Callable[..., int]:
        def function(*arguments: Any) -> int:
            try:
                work(*arguments)
            except RefusedError as failure:
                return CODES[failure.code]
            return 0

        return function

    def name_of(code: int, text: Any) -> int:
        text._obj.value = {value: name for name, value in CODES.items()}[code].encode()
        return 0

    def end(stream: Any, graph: Any) -> None:
        graph._obj.value = library.call("cuStreamEndCapture", stream.value)

    def instantiate(executable: Any, graph: Any, _: Any) -> None:
        executable._obj.value = library.call("cuGraphInstantiate", graph.value)

    def create_event(event: Any, flags: Any) -> None:
        event._obj.value = library.call("cuEventCreate", flags.value)

    def elapsed(result: Any, first: Any, last: Any) -> None:
        result._obj.value = library.call("cuEventElapsedTime", first.value, last.value)

    works: dict[str, Callable[..., Any]] = {
        "cuEventCreate": create_event,
        "cuEventElapsedTime": elapsed,
        "cuEventRecord": lambda event, stream: library.call("cuEventRecord", event.value, stream.value),
        "cuEventRecordWithFlags": lambda *what: library.call("cuEventRecordWithFlags", *(one.value for one in what)),
        "cuEventSynchronize": lambda event: library.call("cuEventSynchronize", event.value),
        "cuEventDestroy_v2": lambda event: library.call("cuEventDestroy", event.value),
        "cuStreamBeginCapture_v2": lambda stream, mode: library.call("cuStreamBeginCapture", stream.value, mode),
        "cuStreamEndCapture": end,
        "cuGraphInstantiateWithFlags": instantiate,
        "cuGraphLaunch": lambda graph, stream: library.call("cuGraphLaunch", graph.value, stream.value),
        "cuGraphDestroy": lambda graph: library.call("cuGraphDestroy", graph.value),
        "cuGraphExecDestroy": lambda graph: library.call("cuGraphExecDestroy", graph.value),
    }
    return SimpleNamespace(
        cuGetErrorName=name_of,
        cuCtxPopCurrent_v2=lambda _: 0,
        **{name: returning_code(name, work) for name, work in works.items()},
    )


def pycuda(library: FakeLibrary) -> ModuleType:
    """``pycuda.driver``: objects that release themselves, and exceptions."""
    module = ModuleType("pycuda.driver")
    module.Error = type("Error", (Exception,), {})
    module.MemoryError = type("MemoryError", (module.Error,), {})
    module.device_attribute = SimpleNamespace(INTEGRATED="INTEGRATED", CAN_MAP_HOST_MEMORY="CAN_MAP_HOST_MEMORY")
    module.function_attribute = SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    module.host_alloc_flags = SimpleNamespace(DEVICEMAP=2)

    def call(name: str, *arguments: Any) -> Any:
        try:
            return library.call(name, *arguments)
        except RefusedError as failure:
            kind = module.MemoryError if failure.code == "CUDA_ERROR_OUT_OF_MEMORY" else module.Error
            raise kind(str(failure)) from None

    class Held:
        def __init__(self, make: str, release: str, *arguments: Any) -> None:
            self._release = ""
            self.handle = call(make, *arguments)
            self._release = release

        def __int__(self) -> int:
            return self.handle

        def free(self) -> None:
            if self._release:
                call(self._release, self.handle)
            self._release = ""

        __del__ = detach = free
        get_device_pointer = __int__

        def push(self) -> None:
            call("cuCtxPushCurrent", self.handle)

        def pop(self) -> None:
            call("cuCtxPopCurrent")

    class Stream(Held):
        def __init__(self, flags: int) -> None:
            super().__init__("cuStreamCreate", "cuStreamDestroy", flags)

        def synchronize(self) -> None:
            call("cuStreamSynchronize", self.handle)

    class Function:
        def __init__(self, handle: int) -> None:
            self.handle, self.format = handle, ""

        def set_attribute(self, attribute: int, value: int) -> None:
            call("cuFuncSetAttribute", self.handle, attribute, value)

        def prepare(self, formats: list[str]) -> Function:
            self.format = "".join(formats)
            return self

        def prepared_async_call(self, grid: Any, block: Any, stream: Stream, *arguments: bytes, shared_size: int) -> None:
            assert self.format == f"{len(arguments[0])}s"
            assert block[1:] == (1, 1)
            call("cuLaunchKernel", self.handle, grid, block[0], shared_size, stream.handle, arguments[0])

    class Module(Held):
        def __init__(self, image: bytes) -> None:
            super().__init__("cuModuleLoadData", "cuModuleUnload", image)

        def get_function(self, symbol: str) -> Function:
            return Function(call("cuModuleGetFunction", self.handle, symbol.encode()))

    def pagelocked(nbytes: int, dtype: Any, mem_flags: int) -> np.ndarray[Any, Any]:
        owner = Held("cuMemHostAlloc", "cuMemFreeHost", nbytes, mem_flags)

        class Locked(np.ndarray):  # with the base that pycuda gives its arrays
            base = owner

        return library.held[owner.handle].view(dtype).view(Locked)

    module.init = lambda: call("cuInit", 0)
    module.Device = lambda ordinal: SimpleNamespace(
        compute_capability=lambda: (8, 7),
        name=lambda: "Orin",
        get_attribute=ATTRIBUTES.__getitem__,
        retain_primary_context=lambda: Held("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", ordinal),
    )
    module.get_driver_version = lambda: call("cuDriverGetVersion")
    module.mem_get_info = lambda: call("cuMemGetInfo")
    module.mem_alloc = lambda nbytes: Held("cuMemAlloc", "cuMemFree", nbytes)
    module.module_from_buffer, module.Stream, module.pagelocked_empty = Module, Stream, pagelocked
    module.memcpy_htod_async = lambda to, array, stream: call(
        "cuMemcpyHtoDAsync", to, array.ctypes.data, array.nbytes, stream.handle
    )
    module.memcpy_dtoh_async = lambda array, at, stream: call(
        "cuMemcpyDtoHAsync", array.ctypes.data, at, array.nbytes, stream.handle
    )
    return module
