"""The CUDA driver through pycuda; graphs, and the events that can be part of them, go to the driver library directly."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pycuda.driver as cu
from typing_extensions import Self

from refusion_edge.cuda.driver import SHARED_BYTES_WITHOUT_ASKING, Device, HostBuffer, no_host_memory, out_of_memory, recorded
from refusion_edge.errors import BackendError

# CU_STREAM_NON_BLOCKING, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_EVENT_DEFAULT and CU_EVENT_RECORD_EXTERNAL; pycuda has no
# names for them.
_NON_BLOCKING, _THREAD_LOCAL, _TIMING, _EXTERNAL = 1, 1, 0, 1


class PycudaDriver:
    """The first device, through its primary context, which TensorRT and torch share. Implements ``Driver``."""

    name = "pycuda"

    def __init__(self) -> None:
        with _explained():
            cu.init()
            self._device = cu.Device(0)
            self.device = self._describe()
            self._thread = threading.get_ident()
            self._context = self._device.retain_primary_context()
            self._context.push()
        self._library = ctypes.CDLL("libcuda.so.1")
        # pycuda releases objects without references, and the integers that we hand out are none to pycuda.
        self._allocations: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._functions: dict[int, Any] = {}
        self._modules: list[Any] = []
        self._is_capturing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for kept in (self._allocations, self._streams, self._functions, self._modules):
            kept.clear()
        self._context.pop()
        self._context.detach()
        # To release it, pycuda makes the context current once more and leaves it so.
        self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in the calling thread, see ``Driver.current``."""
        if threading.get_ident() == self._thread:
            yield
            return
        with _explained():
            self._context.push()
        try:
            yield
        finally:
            # pycuda aborts the process when a thread ends with a context that is still current.
            self._context.pop()

    def load(self, image: bytes, symbol: str, shared_bytes: int) -> int:
        """Load a module, see ``Driver.load``."""
        with _explained():
            module = cu.module_from_buffer(image)
            function = module.get_function(symbol)
            if shared_bytes > SHARED_BYTES_WITHOUT_ASKING:
                function.set_attribute(cu.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        self._modules.append(module)
        self._functions[len(self._modules)] = function
        return len(self._modules)

    def launch_kernel(
        self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes, stream: int
    ) -> None:
        """Start a function, see ``Driver.launch_kernel``."""
        with _explained():
            # To pycuda the block is one argument, a string of bytes.
            prepared = self._functions[function].prepare([f"{len(arguments)}s"])
            prepared.prepared_async_call(grid, (threads, 1, 1), self._streams[stream], arguments, shared_size=shared_bytes)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes, see ``Driver.memory``."""
        with _explained():
            free, total = cu.mem_get_info()
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory, see ``Driver.allocate``."""
        try:
            allocation = cu.mem_alloc(nbytes)
        except cu.MemoryError as error:
            raise out_of_memory(nbytes, *self.memory()) from error
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, pointer: int) -> None:
        """Release device memory."""
        with _explained():
            self._allocations.pop(pointer).free()

    def allocate_host(self, nbytes: int, *, mapped: bool) -> HostBuffer:
        """Allocate page-locked memory, see ``Driver.allocate_host``."""
        flags = cu.host_alloc_flags.DEVICEMAP if mapped else 0
        try:
            array = cu.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        except cu.MemoryError as error:
            raise no_host_memory(nbytes) from error
        with _explained():
            return HostBuffer(array, int(array.base.get_device_pointer()) if mapped else 0, array.base)

    def free_host(self, buffer: HostBuffer) -> None:
        """Release page-locked memory."""
        with _explained():
            buffer.owner.free()

    def create_stream(self) -> int:
        """Create a stream."""
        with _explained():
            stream = cu.Stream(_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        """Release a stream."""
        del self._streams[stream]

    def upload(self, pointer: int, buffer: HostBuffer, stream: int) -> None:
        """Start copying a buffer to the device."""
        with _explained():
            cu.memcpy_htod_async(pointer, buffer.array, self._streams[stream])

    def download(self, buffer: HostBuffer, pointer: int, stream: int) -> None:
        """Start copying from the device into a buffer."""
        with _explained():
            cu.memcpy_dtoh_async(buffer.array, pointer, self._streams[stream])

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        with _explained():
            self._streams[stream].synchronize()

    def create_event(self) -> int:
        """Create an event."""
        # Not a pycuda event, which hides the handle that recording it into a graph needs.
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(_TIMING))
        return int(event.value or 0)

    def destroy_event(self, event: int) -> None:
        """Release an event."""
        self._call("cuEventDestroy_v2", ctypes.c_void_p(event))

    def record(self, event: int, stream: int) -> None:
        """Record the time, see ``Driver.record``."""
        place = ctypes.c_void_p(event), ctypes.c_void_p(stream)
        if self._is_capturing:
            # Without the flag, an event in a graph only orders; outside of a graph, the flag is refused.
            self._call("cuEventRecordWithFlags", *place, ctypes.c_uint(_EXTERNAL))
        else:
            self._call("cuEventRecord", *place)

    def elapsed_ms(self, first: int, last: int) -> float:
        """Time between two events, see ``Driver.elapsed_ms``."""
        elapsed = ctypes.c_float()
        self._call("cuEventSynchronize", ctypes.c_void_p(last))
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), ctypes.c_void_p(first), ctypes.c_void_p(last))
        return float(elapsed.value)

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record a graph, see ``Driver.capture``."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()

        def begin() -> None:
            self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _THREAD_LOCAL)
            self._is_capturing = True

        def end() -> None:
            self._is_capturing = False
            self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))

        recorded(begin, work, end)
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return executable

    def launch(self, graph: Any, stream: int) -> None:
        """Start a recorded graph."""
        self._call("cuGraphLaunch", graph, ctypes.c_void_p(stream))

    def destroy_graph(self, graph: Any) -> None:
        """Release a recorded graph."""
        self._call("cuGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._library, name)(*arguments):
            said = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(said))
            reason = (said.value or f"error {code}".encode()).decode()
            raise BackendError(f"the CUDA driver failed in {name} with {reason}", "see 'refusion-edge doctor'")

    def _describe(self) -> Device:
        attribute = cu.device_attribute
        major, minor = self._device.compute_capability()
        version = cu.get_driver_version()
        return Device(
            name=self._device.name(),
            compute_capability=f"{major}.{minor}",
            integrated=bool(self._device.get_attribute(attribute.INTEGRATED)),
            maps_host_memory=bool(self._device.get_attribute(attribute.CAN_MAP_HOST_MEMORY)),
            driver=f"{version // 1000}.{version % 1000 // 10}",
        )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn exceptions of pycuda into ours."""
    try:
        yield
    except cu.Error as error:
        said = " ".join(str(error).split())
        raise BackendError(f"the CUDA driver failed: {said}", "see 'refusion-edge doctor'") from error
