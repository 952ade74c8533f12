"""The CUDA driver through pycuda. It has no graphs, so work is started piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Self

import numpy as np
import pycuda.driver as cu

from refusion_edge.cuda.driver import Device, HostBuffer, out_of_memory
from refusion_edge.errors import BackendError

# CU_STREAM_NON_BLOCKING; pycuda has no name for it.
_NON_BLOCKING = 1


class PycudaDriver:
    """The first device, through its primary context, which TensorRT and torch share. Implements ``Driver``."""

    name = "pycuda"
    can_capture = False

    def __init__(self) -> None:
        try:
            cu.init()
            self._device = cu.Device(0)
            self.device = self._describe()
            self._context = self._device.retain_primary_context()
            self._context.push()
        except cu.Error as error:
            raise _explained(error) from error
        # pycuda releases what nobody refers to any more; the integers that we hand out do not count.
        self._allocations: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._allocations.clear()
        self._streams.clear()
        self._context.pop()
        self._context.detach()

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory, see ``Driver.allocate``."""
        try:
            allocation = cu.mem_alloc(nbytes)
        except cu.MemoryError as error:
            raise out_of_memory(nbytes, *cu.mem_get_info()) from error
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, pointer: int) -> None:
        """Release device memory."""
        self._allocations.pop(pointer).free()

    def allocate_host(self, nbytes: int, *, mapped: bool) -> HostBuffer:
        """Allocate page-locked memory, see ``Driver.allocate_host``."""
        flags = cu.host_alloc_flags.DEVICEMAP if mapped else 0
        try:
            array = cu.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        except cu.Error as error:
            raise _explained(error) from error
        return HostBuffer(array, int(array.base.get_device_pointer()) if mapped else 0, array.base)

    def free_host(self, buffer: HostBuffer) -> None:
        """Release page-locked memory."""
        buffer.owner.free()

    def create_stream(self) -> int:
        """Make a stream."""
        stream = cu.Stream(_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        """Release a stream."""
        del self._streams[stream]

    def upload(self, pointer: int, buffer: HostBuffer, stream: int) -> None:
        """Start to copy a buffer to the device."""
        cu.memcpy_htod_async(pointer, buffer.array, self._streams[stream])

    def download(self, buffer: HostBuffer, pointer: int, stream: int) -> None:
        """Start to copy from the device into a buffer."""
        cu.memcpy_dtoh_async(buffer.array, pointer, self._streams[stream])

    def synchronise(self, stream: int) -> None:
        """Wait for a stream."""
        try:
            self._streams[stream].synchronize()
        except cu.Error as error:
            raise _explained(error) from error

    def capture(self, stream: int, work: Callable[[], None]) -> NoReturn:
        """Refuse: pycuda has no graphs."""
        raise BackendError("expected a driver layer with CUDA graphs, got pycuda; install cuda-bindings.")

    def launch(self, graph: Any, stream: int) -> NoReturn:
        """Refuse: pycuda has no graphs."""
        self.capture(stream, lambda: None)

    def destroy_graph(self, graph: Any) -> None:
        """Do nothing: there are no graphs."""

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


def _explained(error: Exception) -> BackendError:
    return BackendError(f"expected the CUDA driver to succeed, got '{error}'; see 'refusion-edge doctor'.")
