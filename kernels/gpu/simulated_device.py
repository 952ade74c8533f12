"""A simulated CUDA device: memory is NumPy arrays, kernels are their references, and every request is checked.

Fresh memory holds NaN. Using memory after its release or beyond its end, releasing anything twice, naming an unknown stream,
event or graph, waiting while a graph is recorded, working in a thread where the device is not current, and leaving anything
allocated are errors. ``SimulatedDevice`` has memory, streams and graphs but runs no kernels; ``SimulatedProgramDevice`` runs
those of one program, which is how ``build`` measures the accuracy of a program on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Uint8Array, bytes_of
from refusion_edge.cuda.driver import Device, HostBuffer, out_of_memory, recorded
from refusion_edge.cuda.program import ALIGNMENT, POINTER_TYPES, Binary, Buffer, Kernel, Program, aligned, cuda_text, unpack
from refusion_edge.errors import BackendError
from refusion_edge.kernels.gpu.schedule import SOURCES

# All bits set is NaN in every floating dtype.
POISON = 0xFF
_GAP = 1 << 16


class DeviceMisuseError(BackendError):
    """A request that a real device would answer later with a crash, with wrong results, or not at all."""


class SimulatedDevice:
    """A simulated CUDA device without kernels. Implements ``Driver``.

    Attributes:
        calls: The requests in order, without those that were only recorded.
        is_open: Whether it has not been closed yet.

    Args:
        device: The device to simulate.
        total: Bytes of memory.
    """

    name = "simulated"

    def __init__(self, device: Device, *, total: int = 1 << 40) -> None:
        self.device = device
        self.total = total
        self.calls: list[str] = []
        self.is_open = True
        self._memory: dict[int, Uint8Array] = {}
        self._hosts: dict[int, HostBuffer] = {}
        self._events: dict[int, float] = {}
        self._streams: set[int] = set()
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._recording: list[Callable[[], None]] | None = None
        self._threads = {threading.get_ident()}
        self._end = 1 << 40
        self._handles = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object = None, *exc: object) -> None:
        self.calls.append("close")
        self.is_open = False
        if kind is None and self.held:
            raise self.misuse(f"{self.held} were not released")

    @property
    def held(self) -> str:
        """What has not been released yet, in words; empty if nothing."""
        kinds: dict[str, Sized] = {"pointers": self._memory, "host buffers": self._hosts, "events": self._events,
                 "streams": self._streams, "graphs": self._graphs}  # fmt: skip
        return ", ".join(f"{len(kept)} {name}" for name, kept in kinds.items() if kept)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Let the calling thread use the device, see ``Driver.current``."""
        here, before = threading.get_ident(), set(self._threads)
        self._threads.add(here)
        try:
            yield
        finally:
            self._threads = before

    def load(self, image: bytes, symbol: str, shared_bytes: int) -> int:
        """Refuse: this device has no kernels."""
        raise self.misuse(f"the module of {symbol} is unknown")

    def launch_kernel(
        self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes, stream: int
    ) -> None:
        """Refuse: this device has no kernels."""
        raise self.misuse(f"the function {function} was never loaded")

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        return self.total - sum(array.nbytes for array in self._memory.values()), self.total

    def allocate(self, nbytes: int) -> int:
        """Allocate memory, filled with NaN."""
        free, total = self.memory()
        if nbytes > free:
            raise out_of_memory(nbytes, free, total)
        self.calls.append(f"allocate {nbytes}")
        return self._place(np.full(nbytes, POISON, np.uint8))

    def free(self, pointer: int) -> None:
        """Release memory."""
        self.calls.append("free")
        self._drop(self._memory, pointer, "the memory")

    def allocate_host(self, nbytes: int, *, mapped: bool) -> HostBuffer:
        """Allocate host memory, filled with NaN."""
        self.calls.append(f"host {nbytes}{' mapped' if mapped else ''}")
        array = np.full(nbytes, POISON, np.uint8)
        owner = self._new_handle()
        buffer = HostBuffer(array, self._place(array) if mapped else 0, owner)
        self._hosts[owner] = buffer
        return buffer

    def free_host(self, buffer: HostBuffer) -> None:
        """Release host memory."""
        self.calls.append("free host")
        self._drop(self._hosts, buffer.owner, "the host buffer")
        if buffer.pointer:
            self._drop(self._memory, buffer.pointer, "the mapped memory")

    def create_stream(self) -> int:
        """Make a stream."""
        stream = self._new_handle()
        self._streams.add(stream)
        return stream

    def destroy_stream(self, stream: int) -> None:
        """Release a stream."""
        self.calls.append("destroy stream")
        self._check_stream(stream)
        self._streams.remove(stream)

    def upload(self, pointer: int, buffer: HostBuffer, stream: int) -> None:
        """Copy a buffer into memory."""
        self.start("upload", lambda: np.copyto(self.view(pointer, buffer.array.nbytes), buffer.array), stream)

    def download(self, buffer: HostBuffer, pointer: int, stream: int) -> None:
        """Copy memory into a buffer."""
        self.start("download", lambda: np.copyto(buffer.array, self.view(pointer, buffer.array.nbytes)), stream)

    def synchronize(self, stream: int) -> None:
        """Check that waiting is allowed; work is done as soon as it is started."""
        self._check_stream(stream)
        if self._recording is not None:
            raise self.misuse("a stream cannot be waited for while a graph is recorded")
        self.calls.append("synchronize")

    def create_event(self) -> int:
        """Make an event."""
        event = self._new_handle()
        self._events[event] = float("nan")
        return event

    def destroy_event(self, event: int) -> None:
        """Release an event."""
        self._drop(self._events, event, "the event")

    def record(self, event: int, stream: int) -> None:
        """Record the host's time in an event."""
        if event not in self._events:
            raise self.misuse(f"the event {event} does not exist")
        self.start("record", lambda: self._events.update({event: time.perf_counter()}), stream)

    def elapsed_ms(self, first: int, last: int) -> float:
        """Time between two events."""
        return (self._events[last] - self._events[first]) * 1e3

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record a graph, see ``Driver.capture``."""
        self._check_stream(stream)
        self.calls.append("capture")
        handle = self._new_handle()
        self._graphs[handle] = recorded(self._begin, work, self._finish)
        return handle

    def launch(self, graph: Any, stream: int) -> None:
        """Run a graph."""
        self._check_stream(stream)
        if graph not in self._graphs:
            raise self.misuse(f"the graph {graph} does not exist")
        self.calls.append("launch")
        for step in self._graphs[graph]:
            step()

    def destroy_graph(self, graph: Any) -> None:
        """Release a graph."""
        self.calls.append("destroy graph")
        self._drop(self._graphs, graph, "the graph")

    def start(self, what: str, work: Callable[[], None], stream: int) -> None:
        """Do some work on a stream: at once, or, while a graph is recorded, whenever the graph is launched.

        Args:
            what: What the work is called in ``calls``.
            work: Does it.
            stream: Where.
        """
        self._check_stream(stream)
        if self._recording is None:
            self.calls.append(what)
            work()
        else:
            self._recording.append(work)

    def view(self, pointer: int, nbytes: int) -> Uint8Array:
        """View memory; the bytes must lie within one allocation."""
        for start, memory in self._memory.items():
            if start <= pointer and pointer + nbytes <= start + memory.size:
                if pointer % ALIGNMENT:
                    raise self.misuse(f"the address {pointer:#x} is not a multiple of {ALIGNMENT}")
                return memory[pointer - start : pointer - start + nbytes]
        raise self.misuse(f"fewer than {nbytes} bytes are allocated at {pointer:#x}")

    def misuse(self, what: str) -> DeviceMisuseError:
        """Make the error for a wrong request."""
        return DeviceMisuseError(f"{what} on {self.device.name}", "this is a bug, please report it")

    def _place(self, array: Uint8Array) -> int:
        pointer = self._end
        self._memory[pointer] = array
        # A gap after each allocation, so that running over its end is noticed.
        self._end += aligned(array.nbytes) + _GAP
        return pointer

    def _new_handle(self) -> int:
        self._handles += 1
        return self._handles

    def _drop(self, kept: dict[int, Any], handle: int, what: str) -> None:
        if kept.pop(handle, None) is None:
            raise self.misuse(f"{what} {handle:#x} is to be released but does not exist")

    def _check_stream(self, stream: int) -> None:
        if threading.get_ident() not in self._threads:
            raise self.misuse(f"no device is current in the thread {threading.current_thread().name}")
        if stream not in self._streams:
            raise self.misuse(f"the stream {stream} does not exist")

    def _begin(self) -> None:
        self._recording = []

    def _finish(self) -> list[Callable[[], None]]:
        steps, self._recording = self._recording or [], None
        return steps


# Newer than any real driver.
_NEWEST_DRIVER = 99_990


@dataclass(frozen=True, slots=True)
class Call:
    """One launch that the device has checked.

    Attributes:
        index: Its place in the schedule.
        kernel: The kernel.
        binary: What was loaded for it.
        grid: Programs along x, y and z.
        block: The arguments as the driver takes them.
        values: The same, one for each parameter: addresses and integers.
        arguments: By parameter: memory as flat arrays, integers; and the kernel's constants.
    """

    index: int
    kernel: Kernel
    binary: Binary
    grid: tuple[int, int, int]
    block: bytes
    values: tuple[int, ...]
    arguments: Mapping[str, Any]


class SimulatedProgramDevice(SimulatedDevice):
    """A simulated CUDA device that runs one program with its reference kernels. Implements ``Driver``.

    Args:
        program: The program that will run.
        architecture: 10 times the compute capability to simulate.
        driver_version: CUDA version of the simulated driver.
        integrated: Whether to simulate a GPU that shares its memory with the processor.
    """

    def __init__(
        self, program: Program, architecture: int, *, driver_version: int = _NEWEST_DRIVER, integrated: bool = False
    ) -> None:
        capability = f"{architecture // 10}.{architecture % 10}"
        super().__init__(Device("the simulated device", capability, integrated, True, cuda_text(driver_version)))
        self._program = program
        self._functions: dict[int, tuple[Kernel, Binary]] = {}
        self._frame = _Frame()

    def load(self, image: bytes, symbol: str, shared_bytes: int) -> int:
        """Find a module in the program and return its function."""
        for target in self._program.targets.values():
            for name, known in target.binaries.items():
                if (known.image, known.symbol, known.shared_bytes) == (image, symbol, shared_bytes):
                    handle = len(self._functions) + 1
                    self._functions[handle] = self._program.schedule.kernels[name], known
                    return handle
        raise self.misuse(f"the module of {symbol} is not part of the program")

    def launch_kernel(
        self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes, stream: int
    ) -> None:
        """Check a launch and run it with the NumPy reference."""
        kernel, binary = self._functions[function]
        if (threads, shared_bytes) != (32 * binary.tile.warps, binary.shared_bytes):
            compiled_for = f"{32 * binary.tile.warps} threads and {binary.shared_bytes} bytes of shared memory"
            raise self.misuse(f"{kernel.name} was compiled for {compiled_for} and launched with {threads} and {shared_bytes}")
        self.start(f"kernel {kernel.name}", lambda: self._run(kernel, binary, grid, arguments), stream)

    def launch(self, graph: Any, stream: int) -> None:
        """Run a graph, which must be one whole frame."""
        self._frame = _Frame()
        super().launch(graph, stream)
        if self._frame.index != len(self._program.schedule.launches):
            launches = len(self._program.schedule.launches)
            raise self.misuse(f"a frame of {launches} launches ended after {self._frame.index}")

    def compute(self, call: Call) -> None:
        """Run a launch: here with the kernel's reference."""
        SOURCES[call.kernel.source].run_reference(call.arguments, call.kernel.streams)

    def _run(self, kernel: Kernel, binary: Binary, grid: tuple[int, int, int], block: bytes) -> None:
        frame, schedule = self._frame, self._program.schedule
        launch = schedule.launches[frame.index]
        if launch.kernel != kernel.name:
            raise self.misuse(f"launch {frame.index} should be {launch.kernel} but is {kernel.name}")
        try:
            values = unpack(kernel.parameters, block, binary.hidden_pointers)
        except ValueError as error:
            raise self.misuse(f"the arguments of {kernel.name} are malformed ({error})") from error
        arguments: dict[str, Any] = dict(kernel.constants)
        for parameter, argument, value in zip(kernel.parameters, launch.arguments, values, strict=True):
            if argument.kind == "size":
                self._require_equal(f"the {argument.name}", frame.sizes.setdefault(argument.name, value), value)
            arguments[parameter.name] = value
        size_hw = frame.sizes["height"], frame.sizes["width"]
        self._require_equal(f"the grid of {kernel.name}", kernel.launch_grid(binary.tile, size_hw), grid)
        for parameter, argument, value in zip(kernel.parameters, launch.arguments, values, strict=True):
            if argument.kind == "strips":
                across, down = self._tiles[argument.name].strips(size_hw)
                self._require_equal(f"strips of {argument.name}", across * down, value)
            elif argument.kind == "weights":
                array = self._program.weights[argument.name]
                view = self.view(value, array.nbytes)
                if not np.array_equal(view, bytes_of(array)):
                    raise self.misuse(f"{kernel.name} received other bytes than the weights {argument.name}")
                arguments[parameter.name] = view.view(POINTER_TYPES[parameter.type])
            elif argument.kind == "buffer":
                view = self._buffer(schedule.buffers[argument.name], value, size_hw)
                arguments[parameter.name] = view.view(POINTER_TYPES[parameter.type])
        self.compute(Call(frame.index, kernel, binary, grid, block, tuple(values), arguments))
        for name in [name for name, (address, _) in frame.placed.items() if self._ends(schedule.buffers[name])]:
            address, size = frame.placed.pop(name)
            self.view(address, size)[:] = POISON
        frame.index += 1

    @property
    def _tiles(self) -> dict[str, Any]:
        return {kernel.name: binary.tile for kernel, binary in self._functions.values()}

    def _ends(self, buffer: Buffer) -> bool:
        return buffer.role == "scratch" and buffer.last == self._frame.index

    def _buffer(self, buffer: Buffer, address: int, size_hw: tuple[int, int]) -> Uint8Array:
        size, placed = buffer.bytes(size_hw, self._tiles), self._frame.placed
        if buffer.name not in placed:
            for name, (start, length) in placed.items():
                if start < address + size and address < start + length:
                    raise self.misuse(f"{buffer.name} overlaps {name}, which is still in use,")
            placed[buffer.name] = address, size
        self._require_equal(f"the address of {buffer.name}", placed[buffer.name][0], address)
        return self.view(address, size)

    def _require_equal(self, what: str, expected: object, got: object) -> None:
        if expected != got:
            raise self.misuse(f"{what} should be {expected} but is {got}")


class _Frame:
    """Progress of one frame: the next launch, the size of the image, and where the buffers now in use lie."""

    def __init__(self) -> None:
        self.index = 0
        self.sizes: dict[str, int] = {}
        self.placed: dict[str, tuple[int, int]] = {}
