"""A CUDA device through cuda-bindings: the driver API as it is, no toolkit, no compiler."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np

from refusion_edge.backends.device import HostMemory, Properties
from refusion_edge.errors import BackendError
from refusion_edge.program import Binary

# More dynamic shared memory than this has to be asked for, function by function.
_SHARED_BYTES_WITHOUT_ASKING = 48 * 1024
_MAPPED_PAGE_LOCKED = 0x02  # CU_MEMHOSTALLOC_DEVICEMAP
# How a block of packed arguments is announced (CU_LAUNCH_PARAM_*).
_BLOCK_END, _BLOCK_POINTER, _BLOCK_SIZE = 0, 1, 2


class CudaDevice:
    """The first CUDA device, in its primary context, which torch or TensorRT in the same process share.

    Raises:
        BackendError: There is no driver or no device.
    """

    def __init__(self) -> None:
        self._driver: Any = importlib.import_module("cuda.bindings.driver")
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", 0)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._call("cuCtxSetCurrent", self._context)
        # Not the default stream: that one cannot be captured.
        self._stream = self._call("cuStreamCreate", self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._modules: list[Any] = []
        self._functions: dict[int, Any] = {}
        self._graphs: dict[int, Any] = {}

    @property
    def properties(self) -> Properties:
        """What the device is."""
        attribute = self._driver.CUdevice_attribute
        major, minor, integrated = (
            self._call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), self._device)
            for name in ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "INTEGRATED")
        )
        name = bytes(self._call("cuDeviceGetName", 256, self._device)).split(b"\0")[0].decode()
        return Properties(name, 10 * major + minor, self._call("cuDriverGetVersion"), bool(integrated))

    def load(self, binary: Binary) -> int:
        """Load a module and return its function."""
        module = self._call("cuModuleLoadData", binary.image)
        self._modules.append(module)
        function = self._call("cuModuleGetFunction", module, binary.symbol.encode())
        if binary.shared_bytes > _SHARED_BYTES_WITHOUT_ASKING:
            limit = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, limit, binary.shared_bytes)
        self._functions[int(function)] = function
        return int(function)

    def allocate(self, size: int) -> int:
        """Allocate device memory and return its address."""
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cuMemFree", address)

    def allocate_host(self, size: int) -> HostMemory:
        """Allocate page-locked memory that the device sees, too."""
        pointer = int(self._call("cuMemHostAlloc", size, _MAPPED_PAGE_LOCKED))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
        return HostMemory(array, int(self._call("cuMemHostGetDevicePointer", pointer, 0)))

    def free_host(self, memory: HostMemory) -> None:
        """Free page-locked memory."""
        self._call("cuMemFreeHost", memory.array.ctypes.data)

    def upload(self, address: int, memory: HostMemory, size: int) -> None:
        """Copy page-locked memory to the device."""
        self._call("cuMemcpyHtoDAsync", address, memory.array.ctypes.data, size, self._stream)

    def download(self, memory: HostMemory, address: int, size: int) -> None:
        """Copy device memory to page-locked memory."""
        self._call("cuMemcpyDtoHAsync", memory.array.ctypes.data, address, size, self._stream)

    def launch(self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes) -> None:
        """Launch a function with a block of arguments."""
        block = ctypes.create_string_buffer(arguments, len(arguments))
        size = ctypes.c_size_t(len(arguments))
        # The driver copies the block before it returns, also into a graph.
        extra = (ctypes.c_void_p * 5)(_BLOCK_POINTER, ctypes.addressof(block), _BLOCK_SIZE, ctypes.addressof(size), _BLOCK_END)
        self._call(
            "cuLaunchKernel", self._functions[function], *grid, threads, 1, 1, shared_bytes, self._stream, 0,
            ctypes.addressof(extra),
        )  # fmt: skip

    def begin_capture(self) -> None:
        """Record what follows instead of running it."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> int:
        """Stop recording and return the graph."""
        recorded = self._call("cuStreamEndCapture", self._stream)
        graph = self._call("cuGraphInstantiate", recorded, 0)
        self._call("cuGraphDestroy", recorded)
        self._graphs[int(graph)] = graph
        return int(graph)

    def replay(self, graph: int) -> None:
        """Run a graph."""
        self._call("cuGraphLaunch", self._graphs[graph], self._stream)

    def free_graph(self, graph: int) -> None:
        """Free a graph."""
        self._call("cuGraphExecDestroy", self._graphs.pop(graph))

    def synchronise(self) -> None:
        """Wait until everything has run."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give the modules, the stream and the context back."""
        for module in self._modules:
            self._call("cuModuleUnload", module)
        self._call("cuStreamDestroy", self._stream)
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the driver; raise what it complains of, else return what it gives."""
        try:
            status, *results = getattr(self._driver, name)(*arguments)
        except RuntimeError as error:  # cuda-bindings' own, where there is no driver library
            raise BackendError(
                f"expected the CUDA driver, got '{error}'; install the NVIDIA driver of this machine."
            ) from error
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise BackendError(f"expected {name} to succeed, got {status.name}; run 'refusion-edge doctor'.")
        return results[0] if len(results) == 1 else tuple(results)
