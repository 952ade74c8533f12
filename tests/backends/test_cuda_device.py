"""What is asked of the CUDA driver, on a driver that only takes notes."""

from __future__ import annotations

import ctypes
import enum
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from refusion_edge.arrays import State
from refusion_edge.backends.cuda_device import CudaDevice
from refusion_edge.backends.device import unpack
from refusion_edge.backends.fused import FusedBackend
from refusion_edge.errors import BackendError
from refusion_edge.program_file import program_bytes
from tests.conftest import one_sentence
from tests.programs import hollow_program


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2


class NotingDriver(ModuleType):
    """Hands out numbers for handles and remembers which were given back."""

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.calls: list[tuple[Any, ...]] = []
        self.open: set[tuple[str, int]] = set()
        self.blocks: list[bytes] = []
        self.fail: str | None = None
        self._memory: dict[int, Any] = {}
        self._last = 1 << 20
        self.CUresult = CUresult
        self.CUstream_flags = enum.IntEnum("CUstream_flags", {"CU_STREAM_NON_BLOCKING": 1})
        self.CUstreamCaptureMode = enum.IntEnum("CUstreamCaptureMode", {"CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1})
        self.CUfunction_attribute = enum.IntEnum("CUfunction_attribute", {"CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": 8})
        self.CUdevice_attribute = enum.IntEnum(
            "CUdevice_attribute",
            {
                "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 75,
                "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 76,
                "CU_DEVICE_ATTRIBUTE_INTEGRATED": 18,
            },
        )

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: self._answer(name, arguments)

    def _new(self, kind: str) -> int:
        self._last += 4096
        self.open.add((kind, self._last))
        return self._last

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        self.calls.append((name, *arguments))
        if name == self.fail:
            return (CUresult.CUDA_ERROR_OUT_OF_MEMORY,)
        made = {
            "cuMemAlloc": "memory", "cuModuleLoadData": "module", "cuStreamCreate": "stream",
            "cuDevicePrimaryCtxRetain": "context", "cuStreamEndCapture": "recorded", "cuGraphInstantiate": "graph",
        }  # fmt: skip
        given_back = {
            "cuMemFree": "memory", "cuModuleUnload": "module", "cuStreamDestroy": "stream", "cuGraphDestroy": "recorded",
            "cuGraphExecDestroy": "graph", "cuMemFreeHost": "host",
        }  # fmt: skip
        if name in made:
            return CUresult.CUDA_SUCCESS, self._new(made[name])
        if name in given_back:
            self.open.remove((given_back[name], arguments[0]))
        if name == "cuDevicePrimaryCtxRelease":
            self.open = {item for item in self.open if item[0] != "context"}
        if name == "cuMemHostAlloc":
            memory = np.full(arguments[0], 0, np.uint8)
            self._memory[memory.ctypes.data] = memory
            self.open.add(("host", memory.ctypes.data))
            return CUresult.CUDA_SUCCESS, memory.ctypes.data
        if name == "cuLaunchKernel":
            self._note_block(arguments)
        answers = {
            "cuDeviceGet": 0, "cuDriverGetVersion": 12060, "cuDeviceGetName": b"Orin\0\0",
            "cuModuleGetFunction": len(self.calls),
        }  # fmt: skip
        if name == "cuDeviceGetAttribute":
            return CUresult.CUDA_SUCCESS, {75: 8, 76: 7, 18: 1}[int(arguments[0])]
        if name == "cuMemHostGetDevicePointer":
            return CUresult.CUDA_SUCCESS, arguments[0]
        return (CUresult.CUDA_SUCCESS, answers[name]) if name in answers else (CUresult.CUDA_SUCCESS,)

    def _note_block(self, arguments: tuple[Any, ...]) -> None:
        assert arguments[9] == 0  # no array of pointers beside the block
        extra = (ctypes.c_void_p * 5).from_address(arguments[10])
        assert (extra[0], extra[2], extra[4]) == (1, 2, None)
        size = ctypes.c_size_t.from_address(extra[3] or 0).value
        self.blocks.append(ctypes.string_at(extra[1] or 0, size))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> NotingDriver:
    noting = NotingDriver()
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", noting)
    return noting


def test_a_frame_is_captured_once_and_everything_is_given_back(
    driver: NotingDriver, random_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FusedBackend, "_test_itself", lambda _: None)  # nothing is computed here
    program = hollow_program(random_state, 87)
    with FusedBackend(program_bytes(program), device=CudaDevice()) as engine:
        plane = np.zeros((1, 1, 20, 70), np.float32)
        for _ in range(3):
            engine.fuse(plane, plane)
        names = [call[0] for call in driver.calls]
        assert names.count("cuLaunchKernel") == len(program.plan.launches) == 25
        assert names.count("cuGraphLaunch") == 3
        assert names.index("cuStreamBeginCapture") < names.index("cuLaunchKernel") < names.index("cuStreamEndCapture")
        assert names.count("cuMemcpyHtoDAsync") == 1  # the weights; an integrated device reads pictures where they are
        asked = [call[3] for call in driver.calls if call[0] == "cuFuncSetAttribute"]
        large = [binary.shared_bytes for binary in program.targets[87].binaries.values() if binary.shared_bytes > 48 * 1024]
        assert asked == large
        engine.fuse(plane[..., :64], plane[..., :64])
        assert len([item for item in driver.open if item[0] == "graph"]) == 1
    assert driver.open == set()
    stem = program.plan.kernels["stem"]
    assert unpack(stem.parameters, driver.blocks[0], 2)[-2:] == [20, 70]


@pytest.mark.parametrize("fail", ["cuInit", "cuMemAlloc", "cuModuleLoadData", "cuStreamEndCapture", "cuMemHostAlloc"])
def test_what_the_driver_refuses_is_one_sentence_and_leaks_nothing(
    driver: NotingDriver, random_state: State, monkeypatch: pytest.MonkeyPatch, fail: str
) -> None:
    program = hollow_program(random_state, 87)
    driver.fail = fail
    with pytest.raises(BackendError, match=f"{fail} to succeed, got CUDA_ERROR_OUT_OF_MEMORY") as caught:
        FusedBackend(program_bytes(program), device=CudaDevice())
    assert one_sentence(str(caught.value))
    assert driver.open == set()
