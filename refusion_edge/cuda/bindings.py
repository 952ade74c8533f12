"""The CUDA driver through cuda-bindings, NVIDIA's own layer."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cuda.bindings import driver as cu
from typing_extensions import Self

from refusion_edge.cuda.driver import SHARED_BYTES_WITHOUT_ASKING, Device, HostBuffer, no_host_memory, out_of_memory, recorded
from refusion_edge.errors import BackendError

# How a block of packed arguments is announced (CU_LAUNCH_PARAM_*).
_BLOCK_END, _BLOCK_POINTER, _BLOCK_SIZE = 0, 1, 2


class BindingsDriver:
    """The first device, through its primary context, which TensorRT and torch share. Implements ``Driver``."""

    name = "cuda-bindings"

    def __init__(self) -> None:
        _call(cu.cuInit, 0)
        self._ordinal = _call(cu.cuDeviceGet, 0)
        self.device = self._describe()
        self._thread = threading.get_ident()
        self._context = _call(cu.cuDevicePrimaryCtxRetain, self._ordinal)
        _call(cu.cuCtxPushCurrent, self._context)
        self._modules: list[Any] = []
        self._is_capturing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._modules:
            _call(cu.cuModuleUnload, self._modules.pop())
        _call(cu.cuCtxPopCurrent)
        _call(cu.cuDevicePrimaryCtxRelease, self._ordinal)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in the calling thread, see ``Driver.current``."""
        if threading.get_ident() == self._thread:
            yield
            return
        _call(cu.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            _call(cu.cuCtxPopCurrent)

    def load(self, image: bytes, symbol: str, shared_bytes: int) -> int:
        """Load a module, see ``Driver.load``."""
        module = _call(cu.cuModuleLoadData, image)
        self._modules.append(module)
        function = _call(cu.cuModuleGetFunction, module, symbol.encode())
        if shared_bytes > SHARED_BYTES_WITHOUT_ASKING:
            limit = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _call(cu.cuFuncSetAttribute, function, limit, shared_bytes)
        return int(function)

    def launch_kernel(
        self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes, stream: int
    ) -> None:
        """Start a function, see ``Driver.launch_kernel``."""
        block = ctypes.create_string_buffer(arguments, len(arguments))
        size = ctypes.c_size_t(len(arguments))
        # The driver copies the block before it returns, also into a graph.
        extra = (ctypes.c_void_p * 5)(_BLOCK_POINTER, ctypes.addressof(block), _BLOCK_SIZE, ctypes.addressof(size), _BLOCK_END)
        _call(cu.cuLaunchKernel, function, *grid, threads, 1, 1, shared_bytes, stream, 0, ctypes.addressof(extra))

    def memory(self) -> tuple[int, int]:
        """Free and total bytes, see ``Driver.memory``."""
        free, total = _call(cu.cuMemGetInfo)
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory, see ``Driver.allocate``."""
        code, pointer = cu.cuMemAlloc(nbytes)
        if code == cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise out_of_memory(nbytes, *self.memory())
        _check(code, "cuMemAlloc")
        return int(pointer)

    def free(self, pointer: int) -> None:
        """Release device memory."""
        _call(cu.cuMemFree, pointer)

    def allocate_host(self, nbytes: int, *, mapped: bool) -> HostBuffer:
        """Allocate page-locked memory, see ``Driver.allocate_host``."""
        code, allocated = cu.cuMemHostAlloc(nbytes, cu.CU_MEMHOSTALLOC_DEVICEMAP if mapped else 0)
        if code == cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise no_host_memory(nbytes)
        _check(code, "cuMemHostAlloc")
        address = int(allocated)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        pointer = int(_call(cu.cuMemHostGetDevicePointer, address, 0)) if mapped else 0
        return HostBuffer(array, pointer, address)

    def free_host(self, buffer: HostBuffer) -> None:
        """Release page-locked memory."""
        _call(cu.cuMemFreeHost, buffer.owner)

    def create_stream(self) -> int:
        """Create a stream."""
        return int(_call(cu.cuStreamCreate, cu.CUstream_flags.CU_STREAM_NON_BLOCKING.value))

    def destroy_stream(self, stream: int) -> None:
        """Release a stream."""
        _call(cu.cuStreamDestroy, stream)

    def upload(self, pointer: int, buffer: HostBuffer, stream: int) -> None:
        """Start copying a buffer to the device."""
        _call(cu.cuMemcpyHtoDAsync, pointer, buffer.owner, buffer.array.nbytes, stream)

    def download(self, buffer: HostBuffer, pointer: int, stream: int) -> None:
        """Start copying from the device into a buffer."""
        _call(cu.cuMemcpyDtoHAsync, buffer.owner, pointer, buffer.array.nbytes, stream)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        _call(cu.cuStreamSynchronize, stream)

    def create_event(self) -> int:
        """Create an event."""
        return int(_call(cu.cuEventCreate, cu.CUevent_flags.CU_EVENT_DEFAULT.value))

    def destroy_event(self, event: int) -> None:
        """Release an event."""
        _call(cu.cuEventDestroy, event)

    def record(self, event: int, stream: int) -> None:
        """Record the time, see ``Driver.record``."""
        if self._is_capturing:
            # Without the flag, an event in a graph only orders; outside of a graph, the flag is refused.
            _call(cu.cuEventRecordWithFlags, event, stream, cu.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL.value)
        else:
            _call(cu.cuEventRecord, event, stream)

    def elapsed_ms(self, first: int, last: int) -> float:
        """Time between two events, see ``Driver.elapsed_ms``."""
        _call(cu.cuEventSynchronize, last)
        return float(_call(cu.cuEventElapsedTime, first, last))

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record a graph, see ``Driver.capture``."""
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL

        def begin() -> None:
            _call(cu.cuStreamBeginCapture, stream, mode)
            self._is_capturing = True

        def end() -> Any:
            self._is_capturing = False
            return _call(cu.cuStreamEndCapture, stream)

        graph = recorded(begin, work, end)
        try:
            return _call(cu.cuGraphInstantiate, graph, 0)
        finally:
            _call(cu.cuGraphDestroy, graph)

    def launch(self, graph: Any, stream: int) -> None:
        """Start a recorded graph."""
        _call(cu.cuGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Release a recorded graph."""
        _call(cu.cuGraphExecDestroy, graph)

    def _describe(self) -> Device:
        attribute = cu.CUdevice_attribute

        def ask(what: Any) -> int:
            return int(_call(cu.cuDeviceGetAttribute, what, self._ordinal))

        version = int(_call(cu.cuDriverGetVersion))
        major = ask(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = ask(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        return Device(
            name=_call(cu.cuDeviceGetName, 128, self._ordinal).split(b"\0")[0].decode(errors="replace"),
            compute_capability=f"{major}.{minor}",
            integrated=bool(ask(attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED)),
            maps_host_memory=bool(ask(attribute.CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY)),
            driver=f"{version // 1000}.{version % 1000 // 10}",
        )


def _call(function: Any, *arguments: Any) -> Any:
    """Call the driver; give what it returns beside the code, or None."""
    code, *results = function(*arguments)
    _check(code, function.__name__)
    return results[0] if len(results) == 1 else tuple(results) or None


def _check(code: Any, what: str) -> None:
    if code != cu.CUresult.CUDA_SUCCESS:
        raise BackendError(f"the CUDA driver failed in {what} with {code.name}", "see 'refusion-edge doctor'")
