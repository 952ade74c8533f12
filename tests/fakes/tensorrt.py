"""A fake of the module ``tensorrt`` that records its requests and fails where a test wants it to.

It offers what its release offers and nothing else: setting or calling anything more is an AttributeError, as with the real
one. Its engines compute on a simulated device (``refusion_edge.kernels.gpu.simulated_device``).
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refusion_edge.backends.tensorrt.product import PRODUCTS
from refusion_edge.cuda.driver import Device
from refusion_edge.errors import BackendError
from refusion_edge.images.color import merge, to_output_range
from refusion_edge.kernels.gpu.simulated_device import SimulatedDevice

DESKTOP = Device("RTX of the tests", "8.6", integrated=False, maps_host_memory=True, driver="12.6")
JETSON = Device("Orin of the tests", "8.7", integrated=True, maps_host_memory=True, driver="12.6")

MAGIC = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}


def refuse_to_record(*_: object) -> None:
    """A driver's ``capture`` that gives no graph."""
    raise BackendError("a graph cannot be recorded", "go on")


def plan_bytes(version: str = "10.3.0.26", magic: bytes = b"ftrt") -> bytes:
    """The first bytes of a plan, and some more."""
    return magic + bytes(20) + bytes(map(int, version.split("."))) + bytes(100)


class Severity(enum.Enum):
    """As pybind11 makes it: hashable, not a number."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.ready = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.ready = True


class FakeTensor:
    def __init__(self, name: str) -> None:
        self.name = name
        self.shape = (1, 1, 480, 640)


class FakeTensorRT:
    """The module ``tensorrt``, as far as it is used.

    Attributes:
        asked: Everything that was asked of it, in order.
        driver: The device whose memory its engines compute on.
        troubles: What is to go wrong, by name, with what is said then.
        compute: What its engines compute, from two planes.
    """

    float16, float32, uint8 = "float16", "float32", "uint8"
    ILogger = ILogger
    IProgressMonitor = IProgressMonitor

    def __init__(self, version: str = "10.3.0", **members: Any) -> None:
        self.__version__ = version
        self.asked: list[tuple[Any, ...]] = []
        self.driver = SimulatedDevice(DESKTOP, total=1 << 30)
        self.troubles: dict[str, str] = {}
        self.shape: tuple[int, ...] = (1, 1, -1, -1)
        self.profile = ((1, 1, 8, 8), (1, 1, 16, 24), (1, 1, 64, 96))
        self.steps = 3
        self.levels: str | None = None
        self.pixels = False
        self.compute: Callable[[Any, Any], Any] = lambda a, b: (a + b) / 2
        self.network_inputs = ["a", "b"]
        self.context: type[FakeContext] = FakeContext
        self.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
        self.ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"])
        for name, value in members.items():
            setattr(self, name, value)

    @property
    def inputs(self) -> list[str]:
        return ["a", "b", "a_pixels", "b_pixels"] if self.pixels else ["a", "b"]

    def say(self, log: Any, severity: Severity, text: str) -> None:
        log.log(severity, text)

    def Builder(self, log: Any) -> Any:
        assert log.ready
        if "builder" in self.troubles:
            self.say(log, Severity.ERROR, self.troubles["builder"])
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return FakeBuilder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> Any:
        error = SimpleNamespace(desc=lambda: "no such\n operator.", node_name=lambda: "node_7", node_operator=lambda: "Fly")
        problems = [error] if "parse" in self.troubles else []
        return SimpleNamespace(parse=lambda model: not problems, num_errors=len(problems), get_error=problems.__getitem__)

    def Runtime(self, log: Any) -> Any:
        return FakeRuntime(self, log)


class FakeBuilder:
    __slots__ = ("log", "trt")

    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self.trt, self.log = trt, log

    def create_network(self, flags: int = 0) -> Any:
        self.trt.asked.append(("network", flags))
        tensors = [FakeTensor(name) for name in self.trt.network_inputs]
        return SimpleNamespace(
            num_inputs=len(tensors), get_input=tensors.__getitem__, num_outputs=1, get_output=lambda _: FakeTensor("fused")
        )

    def create_builder_config(self) -> Any:
        return FakeConfig(self.trt, self.log)

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *shapes: self.trt.asked.append(("shape", *shapes)))

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, self.trt.steps)
        monitor.phase_start("Timing", "Building engine", 1)
        monitor.phase_finish("Timing")
        for step in range(self.trt.steps):
            if not monitor.step_complete("Building engine", step):
                self.trt.asked.append(("stopped after", step))
                return None
        monitor.phase_finish("Building engine")
        self.trt.say(self.log, Severity.VERBOSE, "Max Scratch Memory: 4096 bytes")
        if "build" in self.trt.troubles:
            self.trt.say(self.log, Severity.WARNING, self.trt.troubles.get("warning", ""))
            self.trt.say(self.log, Severity.ERROR, self.trt.troubles["build"])
            return None
        return plan_bytes()


class FakeConfig:
    __slots__ = ("builder_optimization_level", "log", "progress_monitor", "trt")

    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self.trt, self.log = trt, log

    def set_memory_pool_limit(self, pool: Any, nbytes: int) -> None:
        self.trt.asked.append(("limit", pool.name, nbytes))

    def clear_flag(self, flag: Any) -> None:
        self.trt.asked.append(("no flag", flag.name))

    def set_flag(self, flag: Any) -> None:
        self.trt.asked.append(("flag", flag.name))

    def add_optimization_profile(self, profile: Any) -> None:
        self.trt.asked.append(("profile",))

    def create_timing_cache(self, kept: bytes) -> Any:
        if kept and kept != b"timings":
            self.trt.say(self.log, Severity.WARNING, "Failed to deserialize timing cache.")
            return None
        return SimpleNamespace(serialize=lambda: b"timings", kept=kept)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.trt.asked.append(("timing cache", cache.kept))
        return True


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self.trt, self.log = trt, log
        self.engine_host_code_allowed = False
        if hasattr(trt, "EngineInvalidityDiagnostics"):
            self.get_engine_validity = lambda plan: ("INVALID", trt.findings)

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        self.trt.asked.append(("load", self.engine_host_code_allowed))
        if "load" in self.trt.troubles:
            self.trt.say(self.log, Severity.ERROR, self.trt.troubles["load"])
            return None
        return FakeEngine(self.trt)


class FakeEngine:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def __del__(self) -> None:
        self.trt.driver.calls.append("drop engine")

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    @property
    def names(self) -> list[str]:
        return [*self.trt.inputs, "fused", *([] if self.trt.levels is None else [f"levels_{self.trt.levels}", "fused_mean"])]

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> str:
        return (
            self.trt.uint8
            if name.startswith("levels") or name.endswith("pixels")
            else self.trt.troubles.get("dtype", self.trt.float32)
        )

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.trt.shape

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self.trt.profile

    def create_execution_context(self, strategy: Any) -> Any:
        assert strategy.name == "USER_MANAGED"
        return None if "context" in self.trt.troubles else self.trt.context(self.trt)


class FakeContext:
    """Computes, once it has shapes, addresses and scratch memory."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.device_memory = 0

    def __del__(self) -> None:
        self.trt.driver.calls.append("drop context")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return "shape" not in self.trt.troubles

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shapes.keys() == set(self.trt.inputs)
        return int(np.prod(self.shapes["a"])) * 10

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if "run" in self.trt.troubles:
            return False
        driver, shape, compute = self.trt.driver, self.shapes["a"], self.trt.compute
        driver.view(self.device_memory, self.update_device_memory_size_for_shapes())
        pixels = int(np.prod(shape))
        levels = f"levels_{self.trt.levels}"
        sizes = {levels: pixels, "fused_mean": 4, "a_pixels": pixels, "b_pixels": pixels}
        memory = {name: driver.view(address, sizes.get(name, 4 * pixels)) for name, address in self.addresses.items()}
        besides = {levels, "fused_mean"} if self.trt.levels else set()
        assert memory.keys() == {*self.trt.inputs, "fused"} | besides

        def plane(name: str) -> Any:
            given = memory[name].view(np.float32).reshape(shape)
            return given + memory[f"{name}_pixels"].reshape(shape) / np.float32(255) if self.trt.pixels else given

        def work() -> None:
            a, b = plane("a"), plane("b")
            fused = compute(a, b).ravel()
            np.copyto(memory["fused"].view(np.float32), fused)
            if self.trt.levels:
                np.copyto(memory["fused_mean"].view(np.float32), fused.mean())
                with np.errstate(invalid="ignore"):
                    np.copyto(memory[levels], merge(to_output_range(fused[None], self.trt.levels), None).ravel())

        driver.start("enqueue", work, stream)
        return True


class NewerContext(FakeContext):
    """Is told how much scratch memory it gets."""

    def set_device_memory(self, pointer: int, nbytes: int) -> None:
        self.trt.driver.view(pointer, nbytes)
        self.device_memory = pointer


def release(version: str) -> FakeTensorRT:
    """A release: 10.3 asks for strong typing beside the weak flags, 11 has neither, 9 knows only weak typing."""
    typing = enum.IntEnum("NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1})
    weak = enum.Enum("BuilderFlag", ["FP16", "INT8", "TF32", "VERSION_COMPATIBLE"])
    strong = enum.Enum("BuilderFlag", ["TF32", "VERSION_COMPATIBLE"])
    if version.startswith("11."):
        fake = FakeTensorRT(version, NetworkDefinitionCreationFlag=enum.IntEnum("None", {"REFIT": 0}), BuilderFlag=strong)
        fake.context = NewerContext
        fake.EngineInvalidityDiagnostics = enum.IntFlag("Found", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2})
        fake.findings = 2
        return fake
    if version.startswith("10."):
        return FakeTensorRT(version, NetworkDefinitionCreationFlag=typing, BuilderFlag=weak)
    return FakeTensorRT(version, NetworkDefinitionCreationFlag=enum.IntEnum("None", {"EXPLICIT_BATCH": 0}), BuilderFlag=weak)


@pytest.fixture(params=["10.3.0", "11.4.1"])
def fake_trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """The module ``tensorrt`` of two releases, installed for the test."""
    fake = release(request.param)
    monkeypatch.setitem(sys.modules, PRODUCTS["tensorrt"].module, fake)
    monkeypatch.setattr("refusion_edge.cuda.open_driver", lambda: fake.driver)
    yield fake
    assert not fake.driver.held
