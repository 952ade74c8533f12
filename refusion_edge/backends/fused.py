"""Our GPU kernels from a program file, through the CUDA driver: the device needs neither torch nor Triton nor TensorRT.

Each image size has one allocation for everything between input and output and one CUDA graph of all launches, so that a frame
is one call. On an integrated GPU (Jetson), input and output are page-locked memory that the kernels read and write in place;
on other GPUs the graph copies them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Self

from refusion_edge import cuda
from refusion_edge.arrays import Float32Array, Uint8Array, bytes_of
from refusion_edge.backends.planes import require_planes
from refusion_edge.backends.registry import Engine, RunOptions, Status
from refusion_edge.cuda.driver import Device, Driver, HostBuffer, on_its_device
from refusion_edge.cuda.program import Buffer, Launch, Program, Target, aligned, cuda_text, lay_out, pack
from refusion_edge.cuda.program_file import parse_program
from refusion_edge.cuda.timing import StagesOnDevice, StageTimer
from refusion_edge.errors import BackendError, BundleError, MisfitError, not_finite
from refusion_edge.machine import ARCHITECTURES, accelerator, choose_architecture, is_installed

_INPUT, _FUSED, _LEVELS = "planes", "fused", "levels"
_VISIBLE = {
    _INPUT: ("input", "float32", 2),
    _FUSED: ("output", "float32", 1),
    _LEVELS: ("output", "uint8", 1),
}


def probe() -> Status:
    """Report whether a layer over the CUDA driver is installed and finds a device."""
    layer = cuda.installed()
    if layer is None:
        return Status(usable=False, reason="neither pycuda nor cuda-bindings is installed", fix=cuda.FIX)
    if problem := cuda.problem():
        return Status(usable=False, reason=problem)
    return Status(usable=True, reason=f"{layer} on {accelerator() or 'a CUDA device'}")


def probe_build() -> Status:
    """Report whether programs can be compiled here; that takes Triton but no device."""
    if not is_installed("triton"):
        return Status(usable=False, reason="Triton is not installed", fix="pip install 'refusion-edge[triton]'")
    return Status(usable=True, reason=f"Triton {importlib.metadata.version('triton')}")


def choose_target(program: Program, device: Device) -> Target:
    """Choose the kernels for a device, see ``refusion_edge.machine.choose_architecture``.

    Raises:
        MisfitError: The program has none, or the driver is too old for them.
    """
    here = device.architecture
    chosen = choose_architecture(program.targets, here)
    if chosen is None:
        known = ", ".join(f"sm_{architecture}" for architecture in sorted(program.targets))
        built = choose_architecture(ARCHITECTURES, here)
        raise MisfitError(
            f"the program has kernels for {known} but none for this device ({device.name}, sm_{here})",
            "use another back end: there are no kernels for it"
            if built is None
            else f"build it with 'refusion-edge build --backend fused --arch sm_{built}'",
            expected=tuple(sorted(program.targets)),
            got=here,
        )
    target = program.targets[chosen]
    if device.driver_version < target.driver_version:
        raise MisfitError(
            f"these kernels need a driver for CUDA {cuda_text(target.driver_version)} or newer, but this one is for "
            f"{device.driver}",
            "update the driver (on Jetson: JetPack) or build with an older version of Triton",
            expected=target.driver_version,
            got=device.driver_version,
        )
    return target


def open_engine(engine: Engine, _options: RunOptions) -> FusedBackend:
    """Run a program file."""
    return FusedBackend(engine.data, engine.name)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Memory and graph of one image size.

    Attributes:
        size_hw: Height and width.
        visible: Page-locked memory of input and outputs, by name.
        graph: All copies and launches.
    """

    size_hw: tuple[int, int]
    visible: dict[str, HostBuffer]
    graph: Any


class FusedBackend(StagesOnDevice):
    """A program on a GPU. Implements ``Backend``.

    Attributes:
        device: The device.
        uint8_range: Range of the uint8 output of its last kernel.

    Args:
        data: Bytes of a program file.
        name: What to call it in messages.
        driver: The device, or None for the first CUDA device; closed together with the back end.

    Raises:
        BundleError: The program file is damaged.
        BackendError: There is no device, it has no kernels for it, or they fail the self-test there.
    """

    name = "fused"
    uint8_range: str | None = "stretch"

    def __init__(self, data: bytes, name: str = "the program file", driver: Driver | None = None) -> None:
        self._program = parse_program(data, name)
        _check_visible(self._program, name)
        # Released in reverse order: graph and buffers of the size in use, weights, stream, device.
        with contextlib.ExitStack() as owned:
            self._driver = owned.enter_context(driver or cuda.open_driver())
            self.device = self._driver.device
            self._stream = self._driver.create_stream()
            owned.callback(self._driver.destroy_stream, self._stream)
            self._timer = StageTimer(self._driver, self._stream)
            owned.callback(self._timer.close)
            self._target = choose_target(self._program, self.device)
            self._functions = {
                kernel: self._driver.load(binary.image, binary.symbol, binary.shared_bytes)
                for kernel, binary in self._target.binaries.items()
            }
            self._weights = self._upload_weights(owned)
            self._frame: _Frame | None = None
            self._sized = owned.enter_context(contextlib.ExitStack())
            self._test_itself()
            self._owned = owned.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse``. The result is a new array: the engine's memory ends with the engine."""
        return self._run(a, b).visible[_FUSED].array.view(np.float32).reshape(a.shape).copy()

    def fuse_uint8(self, a: Float32Array, b: Float32Array) -> Uint8Array:
        """Fuse two luma planes and stretch the result to 8 bits on the device; see ``Uint8OutputBackend.fuse_uint8``.

        A level may differ by one from that of ``refusion_edge.images.color`` where a value is within rounding of a half.
        """
        visible = self._run(a, b).visible
        # The sum is not finite if one value is not; the kernel's extremes pass over NaN.
        if not np.isfinite(visible[_FUSED].array.view(np.float32).sum()):
            raise not_finite(self.name)
        return visible[_LEVELS].array.reshape(a.shape[2:]).copy()

    def _prepare_anew(self) -> None:
        self._frame = None

    @on_its_device
    def _run(self, a: Float32Array, b: Float32Array) -> _Frame:
        size_hw = require_planes(a, b)
        frame = self._frame if self._frame is not None and self._frame.size_hw == size_hw else self._prepare(size_hw)
        planes = frame.visible[_INPUT].array.view(np.float32).reshape(2, *size_hw)
        planes[0], planes[1] = a[0, 0], b[0, 0]
        self._driver.launch(frame.graph, self._stream)
        self._driver.synchronize(self._stream)
        return frame

    def _prepare(self, size_hw: tuple[int, int]) -> _Frame:
        """Release the memory and graph of the last size, then allocate and record those of this one."""
        self._frame = None
        self._sized.close()
        tiles, buffers, driver = self._target.tiles, self._program.schedule.buffers, self._driver
        scratch = lay_out(buffers.values(), size_hw, tiles)
        sizes = {name: buffers[name].bytes(size_hw, tiles) for name in _VISIBLE}
        in_place = self.device.is_zero_copy
        with contextlib.ExitStack() as sized:
            arena = driver.allocate(scratch.size + (0 if in_place else sum(map(aligned, sizes.values()))))
            sized.callback(driver.free, arena)
            addresses = {name: arena + offset for name, offset in scratch.offsets.items()}
            after = arena + scratch.size
            visible: dict[str, HostBuffer] = {}
            for name, size in sizes.items():
                visible[name] = driver.allocate_host(size, mapped=in_place)
                sized.callback(driver.free_host, visible[name])
                addresses[name] = visible[name].pointer if in_place else after
                after += aligned(size)
            graph = driver.capture(self._stream, lambda: self._start(size_hw, addresses, visible))
            sized.callback(driver.destroy_graph, graph)
            self._sized.push(sized.pop_all())
        self._frame = _Frame(size_hw, visible, graph)
        return self._frame

    def _start(self, size_hw: tuple[int, int], addresses: dict[str, int], visible: dict[str, HostBuffer]) -> None:
        driver, stream, schedule = self._driver, self._stream, self._program.schedule
        if not self.device.is_zero_copy:
            with self._timer.stage("h2d"):
                driver.upload(addresses[_INPUT], visible[_INPUT], stream)
        with self._timer.stage("infer"):
            for launch in schedule.launches:
                kernel, binary = schedule.kernels[launch.kernel], self._target.binaries[launch.kernel]
                arguments = pack(kernel.parameters, self._values(launch, size_hw, addresses), binary.hidden_pointers)
                grid, threads = kernel.launch_grid(binary.tile, size_hw), 32 * binary.tile.warps
                driver.launch_kernel(self._functions[launch.kernel], grid, threads, binary.shared_bytes, arguments, stream)
        if not self.device.is_zero_copy:
            with self._timer.stage("d2h"):
                for name in (_FUSED, _LEVELS):
                    driver.download(visible[name], addresses[name], stream)

    def _values(self, launch: Launch, size_hw: tuple[int, int], addresses: dict[str, int]) -> list[int]:
        values = []
        for argument in launch.arguments:
            if argument.kind == "size":
                values.append(size_hw[("height", "width").index(argument.name)])
            elif argument.kind == "strips":
                across, down = self._target.tiles[argument.name].strips(size_hw)
                values.append(across * down)
            else:
                values.append((addresses if argument.kind == "buffer" else self._weights)[argument.name])
        return values

    def _upload_weights(self, owned: contextlib.ExitStack) -> dict[str, int]:
        """Copy all weights into one allocation and return their addresses."""
        arrays, driver = self._program.weights, self._driver
        staging = driver.allocate_host(sum(aligned(array.nbytes) for array in arrays.values()), mapped=False)
        try:
            start = offset = driver.allocate(staging.array.size)
            owned.callback(driver.free, start)
            addresses = {}
            for name, array in arrays.items():
                addresses[name] = offset
                staging.array[offset - start : offset - start + array.nbytes] = bytes_of(array)
                offset += aligned(array.nbytes)
            driver.upload(start, staging, self._stream)
            driver.synchronize(self._stream)
        finally:
            driver.free_host(staging)
        return addresses

    def _test_itself(self) -> None:
        """Fuse the images of the self-test and compare, which finds kernels that compute wrongly on this very device."""
        test = self._program.self_test
        fused = self.fuse(test.planes[:1, None], test.planes[1:, None])[0, 0]
        error = float(np.abs(fused - test.fused).max())
        # Not "error > tolerance", which is false for NaN.
        if not error <= test.tolerance:
            raise BackendError(
                f"the kernels are off by {error:g} on {self.device.name} (sm_{self.device.architecture}), more than the "
                f"{test.tolerance:g} allowed",
                "use another back end and report this",
                expected=test.tolerance,
                got=error,
            )


def _check_visible(program: Program, name: str) -> None:
    def facts(buffer: Buffer) -> tuple[str, str, int]:
        return buffer.role, buffer.dtype, buffer.per_pixel

    found = {key: facts(buffer) for key, buffer in program.schedule.buffers.items() if buffer.role != "scratch"}
    extents = [buffer.per_strip + buffer.fixed for buffer in program.schedule.buffers.values() if buffer.role != "scratch"]
    if found != _VISIBLE or any(extents):
        raise BundleError(f"{name} has other inputs and outputs than planes, fused and levels", "build it again")
