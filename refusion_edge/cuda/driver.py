"""The interface of a layer over the CUDA driver: one device, its modules, memory, streams, events and graphs."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from typing_extensions import Self

from refusion_edge.arrays import Uint8Array
from refusion_edge.errors import BackendError

_MIB = 1 << 20
_P = ParamSpec("_P")
_T = TypeVar("_T")

SHARED_BYTES_WITHOUT_ASKING = 48 * 1024
"""More dynamic shared memory than this must be requested for each function."""


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA device.

    Attributes:
        name: Its name.
        compute_capability: Such as ``8.7``.
        integrated: Whether it shares its memory with the CPU, as on a Jetson.
        maps_host_memory: Whether it can read and write host memory in place.
        driver: CUDA version of the driver, such as ``13.0``.
    """

    name: str
    compute_capability: str
    integrated: bool
    maps_host_memory: bool
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}, driver for CUDA {self.driver}"

    @property
    def architecture(self) -> int:
        """10 times the compute capability: 87 for sm_87."""
        major, _, minor = self.compute_capability.partition(".")
        return 10 * int(major) + int(minor)

    @property
    def driver_version(self) -> int:
        """CUDA version of the driver, as it reports it: 12060 for 12.6."""
        major, _, minor = self.driver.partition(".")
        return 1000 * int(major) + 10 * int(minor)

    @property
    def is_zero_copy(self) -> bool:
        """Whether copies to and from the device would only waste bandwidth."""
        return self.integrated and self.maps_host_memory


@dataclass(frozen=True, slots=True)
class HostBuffer:
    """Page-locked host memory, which the device can access directly.

    Attributes:
        array: The memory, uint8, (nbytes,).
        pointer: Its address on the device, or 0 if it is not mapped.
        owner: A handle with which the layer releases it.
    """

    array: Uint8Array
    pointer: int
    owner: Any


class Driver(Protocol):
    """One device. Use it as a context manager; one instance, one thread at a time.

    It is open in the thread that created it. Other threads may use it within ``current`` but must not close it.

    Pointers, streams, functions and events are plain integers. Modules are unloaded with the driver; everything else must be
    released by the caller.

    Raises from every method: BackendError, if the driver reports an error.
    """

    name: str
    device: Device

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Make the device current in the calling thread; in the thread that created the driver it always is."""

    def load(self, image: bytes, symbol: str, shared_bytes: int) -> int:
        """Load a module and return one of its functions.

        Args:
            image: The module, a cubin for this device, or PTX.
            symbol: Name of the function in it.
            shared_bytes: Dynamic shared memory that launches of the function may take.
        """

    def launch_kernel(
        self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes, stream: int
    ) -> None:
        """Start a function.

        Args:
            function: From ``load``.
            grid: Number of blocks along x, y and z.
            threads: Threads of a block, all along x.
            shared_bytes: Dynamic shared memory of a block.
            arguments: As ``refusion_edge.cuda.program.pack`` lays them out; copied before this returns.
            stream: Where.
        """

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of device memory."""

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory, aligned to 256 bytes."""

    def free(self, pointer: int) -> None:
        """Release device memory."""

    def allocate_host(self, nbytes: int, *, mapped: bool) -> HostBuffer:
        """Allocate page-locked memory; ``mapped`` makes it visible to the device."""

    def free_host(self, buffer: HostBuffer) -> None:
        """Release page-locked memory; its array must not be used afterwards."""

    def create_stream(self) -> int:
        """Create a stream that does not wait for the default one."""

    def destroy_stream(self, stream: int) -> None:
        """Release a stream."""

    def upload(self, pointer: int, buffer: HostBuffer, stream: int) -> None:
        """Start copying a buffer to the device."""

    def download(self, buffer: HostBuffer, pointer: int, stream: int) -> None:
        """Start copying from the device into a buffer."""

    def synchronize(self, stream: int) -> None:
        """Wait until all work on a stream is done."""

    def create_event(self) -> int:
        """Create an event that records a time."""

    def destroy_event(self, event: int) -> None:
        """Release an event."""

    def record(self, event: int, stream: int) -> None:
        """Record the time when the device reaches this point of the stream; within a graph, in every run of the graph."""

    def elapsed_ms(self, first: int, last: int) -> float:
        """Wait for the later of two recorded events and return the milliseconds between them."""

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record the work that ``work`` starts on a stream, without running it, and return the graph."""

    def launch(self, graph: Any, stream: int) -> None:
        """Start a recorded graph."""

    def destroy_graph(self, graph: Any) -> None:
        """Release a recorded graph."""


class _OnDriver(Protocol):
    _driver: Driver


_Engine = TypeVar("_Engine", bound=_OnDriver)


def on_its_device(
    method: Callable[Concatenate[_Engine, _P], _T],
) -> Callable[Concatenate[_Engine, _P], _T]:
    """Make the device of an engine current during a method, so that any thread may call it."""

    @functools.wraps(method)
    def run(engine: _Engine, /, *arguments: _P.args, **options: _P.kwargs) -> _T:
        with engine._driver.current():
            return method(engine, *arguments, **options)

    return run


def recorded(begin: Callable[[], None], work: Callable[[], None], end: Callable[[], Any]) -> Any:
    """Record work between ``begin`` and ``end`` and return the result of ``end``, which is called even if the work fails."""
    begin()
    try:
        work()
    except BaseException:
        # Until recording has ended the stream cannot be used; the first error is the one to report.
        with contextlib.suppress(BackendError):
            end()
        raise
    return end()


def memory_text(free: int, total: int) -> str:
    """Free and total memory in words."""
    return f"{free / _MIB:.0f} MiB free of {total / _MIB:.0f}"


def out_of_memory(nbytes: int, free: int, total: int, kind: str = "device memory") -> BackendError:
    """Make the error for too little memory: how much is needed, how much there is, and how to need less."""
    return BackendError(
        f"not enough {kind}: {nbytes / _MIB:.0f} MiB are needed, {memory_text(free, total)}",
        "close other programs, or fuse smaller images (for TensorRT, build for a smaller --size)",
        expected=nbytes,
        got=free,
    )


def no_host_memory(nbytes: int) -> BackendError:
    """The same for page-locked host memory, which on an integrated device is also that of the device."""
    page = os.sysconf("SC_PAGE_SIZE")
    free, total = (page * os.sysconf(name) for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    return out_of_memory(nbytes, free, total, "page-locked memory")
