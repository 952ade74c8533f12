"""Our GPU kernels from a program file, through the CUDA driver: no torch, no Triton, no TensorRT on the device.

For each picture size there is one allocation for everything between input and output, and one CUDA graph with all
launches, so that a frame is one call. On an integrated GPU (Jetson) input and output are page-locked memory that the
kernels read and write in place; on others the graph copies them.
"""

from __future__ import annotations

import importlib.metadata
from typing import Self

import numpy as np

from refusion_edge._optional import is_installed
from refusion_edge.arrays import Float32Array, Uint8Array
from refusion_edge.backends import Engine, RunOptions, Status
from refusion_edge.backends.device import (
    BINDINGS_FIX,
    Device,
    Frame,
    HostMemory,
    Properties,
    bindings,
    bytes_of,
    open_device,
    pack,
)
from refusion_edge.errors import BackendError, BundleError, RefusionError, ShapeError
from refusion_edge.graph import MAX_SIDE
from refusion_edge.luminance import MIN_SIDE
from refusion_edge.machine import accelerator
from refusion_edge.program import Buffer, Launch, Program, Target, aligned, cuda_text, lay_out
from refusion_edge.program_file import parse_program

_INPUT, _FUSED, _LEVELS = "planes", "fused", "levels"
_VISIBLE = {
    _INPUT: ("input", "float32", 2),
    _FUSED: ("output", "float32", 1),
    _LEVELS: ("output", "uint8", 1),
}


def probe() -> Status:
    """Report whether a driver binding and a device are there, without loading any driver library."""
    device = accelerator()
    if device is None:
        return Status(usable=False, reason="no NVIDIA device")
    found = bindings()
    if found is None:
        return Status(usable=False, reason="cuda-bindings is not installed", fix=BINDINGS_FIX)
    return Status(usable=True, reason=f"{found} on {device}")


def probe_build() -> Status:
    """Report whether programs can be compiled here, which needs Triton and no device."""
    if not is_installed("triton"):
        return Status(usable=False, reason="Triton is not installed", fix="pip install 'refusion-edge[triton]'")
    return Status(usable=True, reason=f"Triton {importlib.metadata.version('triton')}")


def choose_target(program: Program, properties: Properties) -> Target:
    """Choose the kernels for a device.

    Kernels for the very architecture, else, on compute capability 8.x, those for the highest one below it, which run
    there; kernels never run across major versions.

    Raises:
        BackendError: There are none, or the driver is too old for them.
    """
    here = properties.architecture
    fitting = [one for one in program.targets if one == here or (one // 10 == here // 10 == 8 and one < here)]
    if not fitting:
        known = ", ".join(f"sm_{one}" for one in sorted(program.targets))
        raise BackendError(
            f"expected kernels for this device ({properties.name}, sm_{here}) in the program, got {known}; build it with "
            f"'refusion-edge build --backend fused --arch sm_{here}'."
        )
    target = program.targets[max(fitting)]
    if properties.driver_version < target.driver_version:
        raise BackendError(
            f"expected a driver for CUDA {cuda_text(target.driver_version)} or newer for these kernels, got one for "
            f"{cuda_text(properties.driver_version)}; update the driver (on Jetson: JetPack), or build with an older "
            "version of Triton."
        )
    return target


def open_engine(engine: Engine, _options: RunOptions) -> FusedBackend:
    """Run a program file."""
    return FusedBackend(engine.data, engine.name)


class FusedBackend:
    """A program on a GPU. Implements ``Backend``.

    Args:
        data: Bytes of a program file.
        name: What to call it in messages.
        device: The device, or None for the first CUDA device. It is closed with the back end.

    Raises:
        BundleError: The program file is damaged.
        BackendError: There is no device that it fits, or its kernels do not give what they should there.
    """

    name = "fused"

    def __init__(self, data: bytes, name: str = "the program file", device: Device | None = None) -> None:
        self._program = parse_program(data, name)
        _check_visible(self._program, name)
        self._device = open_device() if device is None else device
        self._frame: Frame | None = None
        self._weights: dict[str, int] = {}
        try:
            self._target = choose_target(self._program, self._device.properties)
            self._functions = {kernel: self._device.load(binary) for kernel, binary in self._target.binaries.items()}
            self._weights = self._upload_weights()
            self._test_itself()
        except RefusionError:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse``. The result is overwritten by the next call."""
        self._run(a, b)
        return self._output(_FUSED).view(np.float32).reshape(a.shape)

    def fuse_to_levels(self, a: Float32Array, b: Float32Array) -> Uint8Array:
        """Fuse two luma planes and stretch the result to 8 bits on the device.

        Args:
            a: Source a, (1, 1, H, W), [0, 1].
            b: Source b, same shape.

        Returns:
            (H, W), its least value 0 and its largest 255. It is overwritten by the next call.
        """
        self._run(a, b)
        return self._output(_LEVELS).reshape(a.shape[2:])

    def _run(self, a: Float32Array, b: Float32Array) -> None:
        size_hw = _checked_size(a, b)
        if self._frame is None or self._frame.size_hw != size_hw:
            self._drop_frame()
            self._frame = self._make_frame(size_hw)
        planes = self._output(_INPUT).view(np.float32).reshape(2, *size_hw)
        planes[0], planes[1] = a[0, 0], b[0, 0]
        self._device.replay(self._frame.graph)
        self._device.synchronise()

    def _output(self, name: str) -> Uint8Array:
        if self._frame is None:
            raise RuntimeError("no frame was run")
        return self._frame.visible[name].array

    def _make_frame(self, size_hw: tuple[int, int]) -> Frame:
        tiles, buffers, device = self._target.tiles, self._program.plan.buffers, self._device
        scratch = lay_out(buffers.values(), size_hw, tiles)
        sizes = {name: buffers[name].bytes(size_hw, tiles) for name in _VISIBLE}
        in_place = device.properties.integrated
        arena = device.allocate(scratch.size + (0 if in_place else sum(map(aligned, sizes.values()))))
        visible: dict[str, HostMemory] = {}
        try:
            visible |= {name: device.allocate_host(size) for name, size in sizes.items()}
            addresses = {name: arena + offset for name, offset in scratch.offsets.items()}
            after = arena + scratch.size
            for name, size in sizes.items():
                addresses[name] = visible[name].address if in_place else after
                after += aligned(size)
            graph = self._capture(size_hw, addresses, visible, sizes, in_place=in_place)
        except RefusionError:
            for memory in visible.values():
                device.free_host(memory)
            device.free(arena)
            raise
        return Frame(size_hw, arena, visible, graph)

    def _capture(
        self,
        size_hw: tuple[int, int],
        addresses: dict[str, int],
        visible: dict[str, HostMemory],
        sizes: dict[str, int],
        *,
        in_place: bool,
    ) -> int:
        device = self._device
        device.begin_capture()
        if not in_place:
            device.upload(addresses[_INPUT], visible[_INPUT], sizes[_INPUT])
        for launch in self._program.plan.launches:
            kernel, binary = self._program.plan.kernels[launch.kernel], self._target.binaries[launch.kernel]
            arguments = pack(kernel.parameters, self._values(launch, size_hw, addresses), binary.hidden_pointers)
            grid = kernel.launch_grid(binary.tile, size_hw)
            device.launch(self._functions[launch.kernel], grid, 32 * binary.tile.warps, binary.shared_bytes, arguments)
        if not in_place:
            for name in (_FUSED, _LEVELS):
                device.download(visible[name], addresses[name], sizes[name])
        return device.end_capture()

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

    def _upload_weights(self) -> dict[str, int]:
        """Copy all weights into one allocation and return where each lies."""
        arrays = self._program.weights
        staging = self._device.allocate_host(sum(aligned(array.nbytes) for array in arrays.values()))
        try:
            start = offset = self._device.allocate(staging.array.size)
            addresses = {}
            for name, array in arrays.items():
                addresses[name] = offset
                staging.array[offset - start : offset - start + array.nbytes] = bytes_of(array)
                offset += aligned(array.nbytes)
            self._device.upload(start, staging, staging.array.size)
            self._device.synchronise()
        finally:
            self._device.free_host(staging)
        return addresses

    def _test_itself(self) -> None:
        """Fuse the pictures of the file and compare: a kernel that is wrong on this very device is found here."""
        test = self._program.self_test
        fused = self.fuse(test.planes[:1, None], test.planes[1:, None])[0, 0]
        error = float(np.abs(fused - test.fused).max())
        # Not the other way round: nothing is larger than NaN.
        if not error <= test.tolerance:
            properties = self._device.properties
            raise BackendError(
                f"expected the kernels to be within {test.tolerance:g} of the reference on {properties.name} "
                f"(sm_{properties.architecture}), got {error:g}; use another back end and report this."
            )

    def _close(self) -> None:
        self._drop_frame()
        if self._weights:
            # They share one allocation, which starts with the first of them.
            self._device.free(min(self._weights.values()))
        self._device.close()

    def _drop_frame(self) -> None:
        if self._frame is not None:
            frame, self._frame = self._frame, None
            self._device.free_graph(frame.graph)
            for memory in frame.visible.values():
                self._device.free_host(memory)
            self._device.free(frame.arena)


def _check_visible(program: Program, name: str) -> None:
    def facts(buffer: Buffer) -> tuple[str, str, int]:
        return buffer.role, buffer.dtype, buffer.per_pixel

    found = {key: facts(buffer) for key, buffer in program.plan.buffers.items() if buffer.role != "scratch"}
    extents = [buffer.per_strip + buffer.fixed for buffer in program.plan.buffers.values() if buffer.role != "scratch"]
    if found != _VISIBLE or any(extents):
        raise BundleError(f"expected the input planes and the outputs fused and levels in {name}, got others; build it again.")


def _checked_size(a: Float32Array, b: Float32Array) -> tuple[int, int]:
    for name, plane in (("a", a), ("b", b)):
        if plane.ndim != 4 or plane.shape[:2] != (1, 1) or plane.dtype != np.float32:
            raise ShapeError(
                f"expected source {name} as (1, 1, H, W) float32, one pair at a time, got {plane.shape} {plane.dtype}; convert "
                "it, or fuse the pairs of a batch one after the other."
            )
    height, width = a.shape[2:]
    if a.shape != b.shape or not all(MIN_SIDE <= side <= MAX_SIDE for side in (height, width)):
        raise ShapeError(
            f"expected two planes of one size, {MIN_SIDE} to {MAX_SIDE} pixels a side, got {a.shape[2:]} and {b.shape[2:]}; "
            "align or resize them first."
        )
    return height, width
