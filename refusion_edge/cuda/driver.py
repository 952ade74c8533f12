"""What a layer over the CUDA driver offers: one device, one thread, memory, one stream at a time, graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from refusion_edge.arrays import Uint8Array
from refusion_edge.errors import BackendError

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA device.

    Attributes:
        name: Its name.
        compute_capability: Such as ``8.7``.
        integrated: Whether it shares its memory with the processor, as on a Jetson.
        maps_host_memory: Whether it can read and write the processor's memory in place.
        driver: Version of CUDA that the driver knows, such as ``13.0``.
    """

    name: str
    compute_capability: str
    integrated: bool
    maps_host_memory: bool
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}, driver for CUDA {self.driver}"

    @property
    def is_zero_copy(self) -> bool:
        """Whether copies to and from the device would only waste bandwidth."""
        return self.integrated and self.maps_host_memory


@dataclass(frozen=True, slots=True)
class HostBuffer:
    """Page-locked memory of the processor, which the device reaches without a detour.

    Attributes:
        array: The memory, uint8, (nbytes,).
        pointer: Where the device sees it, or 0 if it does not.
        owner: What the layer needs to release it.
    """

    array: Uint8Array
    pointer: int
    owner: Any


class Driver(Protocol):
    """One device. Use it as a context manager; one instance, one thread. Pointers and streams are plain integers.

    Raises from every method: BackendError, if the driver reports an error.
    """

    name: str
    device: Device
    can_capture: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory, aligned to 256 bytes."""

    def free(self, pointer: int) -> None:
        """Release device memory."""

    def allocate_host(self, nbytes: int, *, mapped: bool) -> HostBuffer:
        """Allocate page-locked memory; ``mapped`` makes it visible to the device."""

    def free_host(self, buffer: HostBuffer) -> None:
        """Release page-locked memory; nobody may touch its array any more."""

    def create_stream(self) -> int:
        """Make a stream that does not wait for the default one."""

    def destroy_stream(self, stream: int) -> None:
        """Release a stream."""

    def upload(self, pointer: int, buffer: HostBuffer, stream: int) -> None:
        """Start to copy a buffer to the device."""

    def download(self, buffer: HostBuffer, pointer: int, stream: int) -> None:
        """Start to copy from the device into a buffer."""

    def synchronise(self, stream: int) -> None:
        """Wait until everything that was started on a stream is done."""

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record what ``work`` starts on a stream, without running it; only where ``can_capture``."""

    def launch(self, graph: Any, stream: int) -> None:
        """Start a recorded graph."""

    def destroy_graph(self, graph: Any) -> None:
        """Release a recorded graph."""


def out_of_memory(nbytes: int, free: int, total: int) -> BackendError:
    """Say how much memory was wanted, how much there is, and what takes less."""
    return BackendError(
        f"expected {nbytes / _MIB:.0f} MiB of device memory, got {free / _MIB:.0f} MiB free of {total / _MIB:.0f}; close other "
        "programs, or build for a smaller --size."
    )
