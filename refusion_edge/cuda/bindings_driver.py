"""The CUDA driver through cuda-bindings, NVIDIA's own layer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from cuda.bindings import driver as cu

from refusion_edge.cuda.driver import Device, HostBuffer, out_of_memory
from refusion_edge.errors import BackendError


class BindingsDriver:
    """The first device, through its primary context, which TensorRT and torch share. Implements ``Driver``."""

    name = "cuda-bindings"
    can_capture = True

    def __init__(self) -> None:
        _call(cu.cuInit, 0)
        self._ordinal = _call(cu.cuDeviceGet, 0)
        self.device = self._describe()
        context = _call(cu.cuDevicePrimaryCtxRetain, self._ordinal)
        _call(cu.cuCtxPushCurrent, context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        _call(cu.cuCtxPopCurrent)
        _call(cu.cuDevicePrimaryCtxRelease, self._ordinal)

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory, see ``Driver.allocate``."""
        code, pointer = cu.cuMemAlloc(nbytes)
        if code == cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise out_of_memory(nbytes, *_call(cu.cuMemGetInfo))
        _check(code, "cuMemAlloc")
        return int(pointer)

    def free(self, pointer: int) -> None:
        """Release device memory."""
        _call(cu.cuMemFree, pointer)

    def allocate_host(self, nbytes: int, *, mapped: bool) -> HostBuffer:
        """Allocate page-locked memory, see ``Driver.allocate_host``."""
        address = int(_call(cu.cuMemHostAlloc, nbytes, cu.CU_MEMHOSTALLOC_DEVICEMAP if mapped else 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        pointer = int(_call(cu.cuMemHostGetDevicePointer, address, 0)) if mapped else 0
        return HostBuffer(array, pointer, address)

    def free_host(self, buffer: HostBuffer) -> None:
        """Release page-locked memory."""
        _call(cu.cuMemFreeHost, buffer.owner)

    def create_stream(self) -> int:
        """Make a stream."""
        return int(_call(cu.cuStreamCreate, cu.CUstream_flags.CU_STREAM_NON_BLOCKING.value))

    def destroy_stream(self, stream: int) -> None:
        """Release a stream."""
        _call(cu.cuStreamDestroy, stream)

    def upload(self, pointer: int, buffer: HostBuffer, stream: int) -> None:
        """Start to copy a buffer to the device."""
        _call(cu.cuMemcpyHtoDAsync, pointer, buffer.owner, buffer.array.nbytes, stream)

    def download(self, buffer: HostBuffer, pointer: int, stream: int) -> None:
        """Start to copy from the device into a buffer."""
        _call(cu.cuMemcpyDtoHAsync, buffer.owner, pointer, buffer.array.nbytes, stream)

    def synchronise(self, stream: int) -> None:
        """Wait for a stream."""
        _call(cu.cuStreamSynchronize, stream)

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record a graph, see ``Driver.capture``."""
        _call(cu.cuStreamBeginCapture, stream, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # Recording has to end before the stream is of any use again; the first error is the one to report.
            cu.cuStreamEndCapture(stream)
            raise
        recorded = _call(cu.cuStreamEndCapture, stream)
        try:
            return _call(cu.cuGraphInstantiate, recorded, 0)
        finally:
            _call(cu.cuGraphDestroy, recorded)

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
        raise BackendError(f"expected {what} to succeed, got {code.name} from the CUDA driver; see 'refusion-edge doctor'.")
