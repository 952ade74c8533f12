"""A simulated CUDA device that executes the PTX of a program, launch by launch, where others run the reference kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refusion_edge.arrays import Uint8Array
from refusion_edge.cuda.program import POINTER_TYPES, Program
from refusion_edge.errors import BackendError
from refusion_edge.kernels.emulator.decoder import DecodedKernel, decode
from refusion_edge.kernels.emulator.findings import Finding
from refusion_edge.kernels.emulator.launch import Region, Result, launch
from refusion_edge.kernels.gpu.simulated_device import Call, SimulatedProgramDevice


class EmulatedDevice(SimulatedProgramDevice):
    """A simulated CUDA device whose modules are PTX. Implements ``Driver``.

    It checks requests as ``SimulatedProgramDevice`` does. In addition it knows of every byte of the frame's buffers whether it
    was written, so that a kernel that reads what an earlier one left out is seen.

    Attributes:
        results: What every launch so far did, in order, with the name of its kernel in the program.
        defined: For each buffer of the frame, whether each byte was written, 0 or 1.

    Args:
        program: The program that will run; the images of its kernels are PTX.
        architecture: 10 times the compute capability to simulate.
        check: Whether to look for races and undefined values.
        backward: Whether the last CTA and the last warp go first.
        integrated: Whether to simulate a GPU that shares its memory with the processor.
    """

    def __init__(
        self, program: Program, architecture: int, *, check: bool = True, backward: bool = False, integrated: bool = False
    ) -> None:
        super().__init__(program, architecture, integrated=integrated)
        self.results: list[tuple[str, Result]] = []
        self._how = {"check": check, "backward": backward}
        self._decoded: dict[bytes, DecodedKernel] = {}
        self.defined: dict[str, Uint8Array] = {}

    def load(self, image: bytes, symbol: str, shared_bytes: int) -> int:
        """Find a module in the program, decode it, and return its function.

        Raises:
            BackendError: It is machine code, or the emulator does not know something in the PTX.
            DeviceMisuseError: The module is not part of the program, or holds another kernel.
        """
        handle = super().load(image, symbol, shared_bytes)
        try:
            text = image.decode("ascii")
        except UnicodeDecodeError:
            raise BackendError(
                f"the module of {symbol} is machine code, and the emulator executes PTX",
                "give it what refusion_edge.export.targets.ptx.with_ptx makes of the program",
            ) from None
        kernel = decode(text)
        if kernel.name != symbol:
            raise self.misuse(f"the module of {symbol} holds the kernel {kernel.name}")
        self._decoded[image] = kernel
        return handle

    def launch(self, graph: Any, stream: int) -> None:
        """Run a graph, which must be one whole frame."""
        super().launch(graph, stream)
        name, result = self.results[-1]
        # What no thread wrote is seen when a later kernel uses it, but nobody in here uses the outputs.
        missing = tuple(
            Finding(
                "undefined_output",
                result.kernel.name,
                0,
                "",
                0,
                0,
                -1,
                "",
                f"{buffer} of {defined.size} bytes",
                int((defined == 0).sum()),
            )
            for buffer, defined in self.defined.items()
            if self._program.schedule.buffers[buffer].role == "output" and not defined.all()
        )
        if missing:
            self.results[-1] = name, replace(result, findings=(*result.findings, *missing))

    def compute(self, call: Call) -> None:
        """Execute the PTX of a launch."""
        regions: dict[int, Region] = {}
        schedule = self._program.schedule
        arguments = zip(call.kernel.parameters, schedule.launches[call.index].arguments, call.values, strict=True)
        for parameter, argument, value in arguments:
            if argument.kind not in ("buffer", "weights"):
                continue
            data = call.arguments[parameter.name].view(np.uint8)
            if argument.kind == "weights":
                defined = np.ones(data.size, np.uint8)
            else:
                buffer = schedule.buffers[argument.name]
                if argument.name not in self.defined or buffer.first == call.index:
                    self.defined[argument.name] = np.full(data.size, buffer.role == "input", np.uint8)
                defined = self.defined[argument.name]
            # A buffer may be passed twice, once to read and once to write.
            writable = parameter.written or (value in regions and regions[value].writable)
            regions[value] = Region(argument.name, value, data, defined, writable, POINTER_TYPES[parameter.type].itemsize)
        result = launch(
            self._decoded[call.binary.image],
            call.grid,
            32 * call.binary.tile.warps,
            call.binary.shared_bytes,
            call.block,
            list(regions.values()),
            **self._how,
        )
        self.results.append((call.kernel.name, result))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything that was found so far, each thing once."""
        return tuple(dict.fromkeys(finding for _, result in self.results for finding in result.findings))
