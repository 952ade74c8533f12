"""What a layer over the CUDA driver offers: one device, one thread at a time, modules, memory, streams, events, graphs."""

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
"""More dynamic shared memory than this has to be asked for, function by function."""


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
    def architecture(self) -> int:
        """10 times the compute capability: 87 for sm_87."""
        major, _, minor = self.compute_capability.partition(".")
        return 10 * int(major) + int(minor)

    @property
    def driver_version(self) -> int:
        """Version of CUDA that the driver knows, as it reports it: 12060 for 12.6."""
        major, _, minor = self.driver.partition(".")
        return 1000 * int(major) + 10 * int(minor)

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
    """One device. Use it as a context manager; one instance, one thread at a time.

    It is open in the thread that made it. Other threads may use it within ``current``, and do not close it.

    Pointers, streams, functions and events are plain integers. Modules are unloaded with the driver; everything else is
    released by whoever made it.

    Raises from every method: BackendError, if the driver reports an error.
    """

    name: str
    device: Device

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Let the calling thread use the device, as the thread that made it always can."""

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
        """Bytes of device memory that are free, and all of them."""

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

    def synchronize(self, stream: int) -> None:
        """Wait until everything that was started on a stream is done."""

    def create_event(self) -> int:
        """Make an event that keeps the time."""

    def destroy_event(self, event: int) -> None:
        """Release an event."""

    def record(self, event: int, stream: int) -> None:
        """Let an event take the time when the device comes to it; recorded into a graph, in every run of the graph."""

    def elapsed_ms(self, first: int, last: int) -> float:
        """Wait for the later of two recorded events and return the milliseconds between them."""

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record what ``work`` starts on a stream, without running it, and return the graph."""

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
    """Make the device of an engine's driver current during a method, so that any thread may call it."""

    @functools.wraps(method)
    def run(engine: _Engine, /, *arguments: _P.args, **options: _P.kwargs) -> _T:
        with engine._driver.current():
            return method(engine, *arguments, **options)

    return run


def recorded(begin: Callable[[], None], work: Callable[[], None], end: Callable[[], Any]) -> Any:
    """Record work between begin and end and return what end gives; recording ends even where the work fails."""
    begin()
    try:
        work()
    except BaseException:
        # The stream is of no use before; the first error is the one to report.
        with contextlib.suppress(BackendError):
            end()
        raise
    return end()


def memory_text(free: int, total: int) -> str:
    """How much memory there is, in words."""
    return f"{free / _MIB:.0f} MiB free of {total / _MIB:.0f}"


def out_of_memory(nbytes: int, free: int, total: int, kind: str = "device memory") -> BackendError:
    """Say how much memory was wanted, how much there is, and what takes less."""
    return BackendError(
        f"expected {nbytes / _MIB:.0f} MiB of {kind}, got {memory_text(free, total)}; close other programs, or fuse smaller "
        "pictures (for TensorRT, build for a smaller --size)."
    )


def no_host_memory(nbytes: int) -> BackendError:
    """The same for page-locked memory of the processor, which on an integrated device is that of the device."""
    page = os.sysconf("SC_PAGE_SIZE")
    free, total = (page * os.sysconf(name) for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    return out_of_memory(nbytes, free, total, "page-locked memory")
