"""The interface of the engine builders, one for each back end, and its data types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx

from refusion_edge.arrays import State
from refusion_edge.backends.registry import Backend, Choice, Engine
from refusion_edge.bundle.manifest import Compiled
from refusion_edge.bundle.spec import BuildSpec, EngineSpec
from refusion_edge.errors import UsageError
from refusion_edge.machine import ANY_MACHINE, Target
from refusion_edge.sizes import SizeRange


class PhaseListener(Protocol):
    """Receives the progress of a compiler. Phases nest; the compiler's threads call the methods."""

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins."""

    def stepped(self, phase: str, step: int) -> None:
        """Step ``step`` of a phase, counted from 0, is done."""

    def finished(self, phase: str) -> None:
        """A phase ends."""


@dataclass(frozen=True, slots=True)
class EngineFile:
    """The file that a back end loads.

    Attributes:
        name: Name of the file.
        engine: Its content, and the properties that the back end needs to know.
        target: The machines that it runs on.
        tools: Versions of the tools that compiled it, by name.
        compiled: How it was compiled; None if the back end compiles it on loading.
    """

    name: str
    engine: Engine
    target: Target = ANY_MACHINE
    tools: Mapping[str, str] = field(default_factory=dict)
    compiled: Compiled | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an engine is built from.

    Attributes:
        state: The 86 parameters.
        weights: The same parameters as a weights file.
        model: ONNX model with these parameters, in the form that the back end takes.
        sizes_hw: Size range of the engine; None if it has a fixed size or takes any.
        facts: Compiler, settings and machine, as far as the engine depends on them; part of the cache key.
        remarks: Sentences for the user.
    """

    state: State
    weights: bytes
    model: onnx.ModelProto
    sizes_hw: SizeRange | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def model_bytes(self) -> bytes:
        """The model, serialized; equal models give equal bytes."""
        data: bytes = self.model.SerializeToString(deterministic=True)
        return data


@dataclass(frozen=True, slots=True)
class Proxy:
    """CPU proxy of an engine that needs a device.

    Attributes:
        name: What runs, in words that follow "fp16 on".
        open: Opens the proxy.
    """

    name: str
    open: Callable[[], Backend]


@dataclass(frozen=True, slots=True)
class GateProxies:
    """What the gate runs instead of an engine that cannot run where it is built. Chosen before anything is built.

    Attributes:
        kind: Its name; part of the cache key.
        remark: A sentence for the user; empty if there is nothing to say.
        of: Makes the proxies of an engine, given the engine and its ONNX model. Every one has to pass.
    """

    kind: str
    remark: str
    of: Callable[[Engine, bytes], tuple[Proxy, ...]]


class Builder(Protocol):
    """Builds the engines of one back end.

    If ``compiles`` is true, an engine is the output of a compiler: it cannot be checked against the weights or the model, only
    by running it. Otherwise it is the weights file or the ONNX model itself.
    """

    @property
    def backend(self) -> str:
        """Name of the back end."""

    @property
    def compiles(self) -> bool:
        """Whether engines are compiled, or are the weights file or the ONNX model itself."""

    def check(self, spec: BuildSpec, choice: Choice) -> None:
        """Check that this back end supports a spec.

        Args:
            spec: What to build.
            choice: The back end as it was found on this machine.

        Raises:
            UsageError: It does not.
        """

    def model(self, spec: EngineSpec, state: State) -> onnx.ModelProto:
        """Make the ONNX model of an engine, including the steps before and after the network that the engine runs."""

    def prepare(self, spec: BuildSpec, state: State, weights: bytes, choice: Choice) -> Inputs:
        """Gather everything that the engine depends on, without compiling anything.

        Args:
            spec: What to build.
            state: The 86 parameters.
            weights: The same parameters as a weights file.
            choice: The back end as it was found on this machine.
        """

    def build(self, spec: BuildSpec, inputs: Inputs, listener: PhaseListener | None, remarks: list[str]) -> EngineFile:
        """Build the file that the back end loads.

        Args:
            spec: What to build.
            inputs: The result of ``prepare``; of an int8 engine with the quantized model.
            listener: Receives the progress of the compiler.
            remarks: Receives sentences for the user.

        Raises:
            BackendError: The compiler is unusable here, or fails.
        """

    def gate_proxies(self, spec: BuildSpec, state: State, pixels: int) -> GateProxies:
        """Choose what the gate runs instead of an engine that cannot run here.

        Args:
            spec: What to build.
            state: The parameters.
            pixels: Pixels of all pairs of the gate together.

        Raises:
            UsageError: The requested proxy would take longer than allowed.
            BackendError: It is not installed.
        """

    def proxy(self, engine: Engine, model: bytes, *, threads: int = 0) -> Proxy:
        """CPU proxy of an engine.

        Args:
            engine: The engine.
            model: Its ONNX model.
            threads: Threads on the CPU; 0 for the back end's own choice.

        Raises:
            UsageError: The engine runs on the CPU itself.
        """


def check_options(
    spec: BuildSpec, forms: tuple[str, ...], *, has_compiler_options: bool = False, has_architectures: bool = False
) -> None:
    """Reject options that the back end does not have, or that contradict each other.

    Args:
        spec: What to build, with the back end that was chosen.
        forms: Graph forms that the back end takes in this precision.
        has_compiler_options: Whether it takes compiler settings and ranges of sizes.
        has_architectures: Whether it compiles our kernels, for GPU architectures that can be named.

    Raises:
        UsageError: The spec has such an option.
    """
    if spec.calibration is None and spec.precision == "int8":
        raise UsageError("an int8 engine needs calibration data", "add --calib-data DIR")
    if spec.calibration is not None and spec.precision != "int8":
        raise UsageError(
            f"calibration data is only for int8 engines, and the precision is {spec.precision}",
            "leave --calib-data out",
            expected="int8",
            got=spec.precision,
        )
    if not has_compiler_options and (words := spec.settings.words()):
        raise UsageError(
            f"{words[0]} is only for TensorRT and TensorRT-RTX, and the back end is {spec.backend}",
            "leave it out",
            got=spec.backend,
        )
    if not has_compiler_options and spec.sizes_hw is not None:
        raise UsageError(
            f"a size range ({spec.sizes_hw}) is only for TensorRT and TensorRT-RTX, and {spec.backend} takes any size",
            "use --size dynamic",
            got=spec.backend,
        )
    if not has_architectures and spec.architectures is not None:
        raise UsageError(
            f"--arch is only for the back end fused, and the back end is {spec.backend}",
            "leave it out",
            expected="fused",
            got=spec.backend,
        )
    if not has_architectures and spec.proxy is not None:
        raise UsageError(
            f"--proxy is only for the back end fused, but the back end is {spec.backend}",
            "leave it out",
            expected="fused",
            got=spec.backend,
        )
    if spec.form is not None and spec.form not in forms:
        raise UsageError(
            f"{spec.backend} takes the graph form {' or '.join(forms)} in {spec.precision}, and the form is {spec.form}",
            "leave it out",
            expected=forms,
            got=spec.form,
        )
