"""Programs in the C library over the libcuda.so.1 that is found, whose launches go to the reference kernels in Python.

python -m tests.kernels.c_library.over_libcuda LIBRARY INTEGRATED
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from pathlib import Path

import numpy as np

from refusion_edge.arrays import Uint8Array
from refusion_edge.backends.fused import FusedBackend
from refusion_edge.cuda.program import Program
from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.kernels.gpu.simulated_device import SimulatedProgramDevice
from refusion_edge.network import fast
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.weights import weights_path
from tests.fakes.programs import hollow_program
from tests.kernels.c_library.c_library import DAMAGED, FAILED, INVALID, UNSUPPORTED, fuse, load_library, passed
from tests.oracles import fast as fast_oracle

_SIZES = (21, 37), (16, 16), (21, 37)


class Shape(ctypes.Structure):
    """Blocks along x, y and z, threads and bytes of shared memory of a launch."""

    _fields_ = tuple((name, ctypes.c_uint) for name in ("x", "y", "z", "threads", "shared"))


class DeviceInMemory(SimulatedProgramDevice):
    """Checks and runs launches as the simulated device does, in the memory of this process."""

    def view(self, pointer: int, nbytes: int) -> Uint8Array:
        """The bytes at an address."""
        if pointer % 256:
            raise self.misuse(f"the address {pointer:#x} is not a multiple of 256")
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))

    def next_frame(self) -> None:
        """Expect the first launch."""
        self._frame = type(self._frame)()

    @property
    def launches(self) -> int:
        """Launches of this frame so far."""
        return self._frame.index


def for_stand_in(program: Program) -> Program:
    """The program with images that the stand-in takes: ELF, symbol, name."""
    targets = {
        architecture: dataclasses.replace(
            target,
            binaries={
                name: dataclasses.replace(binary, image=f"\x7fELF{binary.symbol}\0{name}\0sm_{architecture}".encode())
                for name, binary in target.binaries.items()
            },
        )
        for architecture, target in program.targets.items()
    }
    return dataclasses.replace(program, targets=targets)


def main(path: Path, integrated: bool) -> None:
    """Fuse with programs of both networks, and with damaged and unfit ones."""
    stand_in, library = ctypes.CDLL("libcuda.so.1"), load_library(path)
    stand_in.integrate(ctypes.c_int(integrated))
    for state in (read_checkpoint(weights_path("medical")).state, fast_oracle.random_state(fast.FastLayout())):
        fuse_with(stand_in, library, for_stand_in(hollow_program(state, 80, 87, 90)), integrated)
    refuse(stand_in, library, for_stand_in(hollow_program(state, 87)))
    outlive(stand_in, library, for_stand_in(hollow_program(state, 87)))


def fuse_with(stand_in: ctypes.CDLL, library: ctypes.CDLL, program: Program, integrated: bool) -> None:
    """Fuse several sizes exactly as the back end in Python does."""
    device, failures = DeviceInMemory(program, 87, integrated=integrated), []
    stream = device.create_stream()
    functions = {
        name: device.load(binary.image, binary.symbol, binary.shared_bytes)
        for name, binary in program.targets[87].binaries.items()
    }

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(Shape), ctypes.c_void_p, ctypes.c_size_t)
    def launch(name: bytes, shape: ctypes._Pointer[Shape], arguments: int, size: int) -> int:
        try:
            if device.launches == len(program.schedule.launches):
                device.next_frame()
            one = shape.contents
            block = ctypes.string_at(arguments, size)
            device.launch_kernel(functions[name.decode()], (one.x, one.y, one.z), one.threads, one.shared, block, stream)
        except Exception as error:
            failures.append(error)
            return 719  # the launch failed
        return 0

    stand_in.launch_with(launch)
    data = program_bytes(program)
    engine = library.create_program_from_memory(data, len(data))
    assert engine, (library.error(), failures)
    assert (library.isa(engine), library.threads(engine)) == (b"sm_87", 0)
    rng = np.random.default_rng(5)
    with FusedBackend(data, driver=SimulatedProgramDevice(program, 87, integrated=integrated)) as expected:
        for size in _SIZES:
            a, b = rng.random((2, *size), np.float32)
            fused = fuse(library, engine, a, b)
            assert fused is not None, (library.error(), failures)
            assert np.array_equal(fused, expected.fuse(a[None, None], b[None, None])[0, 0])
            assert device.launches == len(program.schedule.launches)
    a[3, 4] = np.nan
    assert np.isnan(fuse(library, engine, a, b)).all()
    assert library.statistics(engine, *passed(a), *passed(b), *a.shape, np.zeros(8).ctypes.data) == UNSUPPORTED
    assert fuse(library, engine, a[:5], b[:5]) is None
    assert library.error_code() == INVALID
    library.destroy(engine)
    assert (stand_in.held_by_callers(), stand_in.contexts_here()) == (0, 0)


def refuse(stand_in: ctypes.CDLL, library: ctypes.CDLL, program: Program) -> None:
    """Programs that are damaged, for other devices, for newer drivers, or that compute wrongly leave nothing behind."""
    data, rng = program_bytes(program), np.random.default_rng(6)
    for _ in range(100):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        for damaged in (bytes(changed), data[: rng.integers(1, len(data))]):
            assert library.create_program_from_memory(damaged, len(damaged)) is None
            assert library.error_code() == DAMAGED
    target = program.targets[87]
    unfit = {
        UNSUPPORTED: [
            dataclasses.replace(program, targets={90: dataclasses.replace(target, architecture=90)}),
            dataclasses.replace(program, targets={89: dataclasses.replace(target, architecture=89)}),
            dataclasses.replace(program, targets={87: dataclasses.replace(target, driver_version=13000)}),
        ],
        FAILED: [program],
    }

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(Shape), ctypes.c_void_p, ctypes.c_size_t)
    def nothing(*_: object) -> int:
        return 0

    stand_in.launch_with(nothing)
    for code, programs in unfit.items():
        for one in programs:
            data = program_bytes(one)
            assert library.create_program_from_memory(data, len(data)) is None
            assert library.error_code() == code, library.error()
            assert (stand_in.held_by_callers(), stand_in.contexts_here()) == (0, 0)


def outlive(stand_in: ctypes.CDLL, library: ctypes.CDLL, program: Program) -> None:
    """An engine that is destroyed after the driver has shut down ends nothing, and says so when it is used."""

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(Shape), ctypes.c_void_p, ctypes.c_size_t)
    def nothing(*_: object) -> int:
        return 0

    stand_in.launch_with(nothing)
    # Zeros are what nothing computes.
    black = dataclasses.replace(program.self_test, fused=np.zeros_like(program.self_test.fused))
    data = program_bytes(dataclasses.replace(program, self_test=black))
    engine = library.create_program_from_memory(data, len(data))
    assert engine, library.error()
    stand_in.shut_down()
    a = np.zeros((16, 16), np.float32)
    assert fuse(library, engine, a, a) is None
    assert library.error_code() == FAILED
    library.destroy(engine)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "integrated")
