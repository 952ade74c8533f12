"""The interface of the engine builders, one for each back end, and its data types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx

from refusion_edge.arrays import State
from refusion_edge.backends.registry import Backend, Engine
from refusion_edge.bundle.manifest import Compiled
from refusion_edge.bundle.spec import EngineSpec
from refusion_edge.errors import UsageError
from refusion_edge.export.spec import BuildSpec
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
    """The sources of an engine.

    Attributes:
        state: The 86 parameters.
        weights: The same parameters as a weights file.
        model: ONNX model with these parameters, in the form that the back end takes.
        sizes_hw: Size range of the engine; None if it has a fixed size or takes any.
    """

    state: State
    weights: bytes
    model: bytes
    sizes_hw: SizeRange | None


@dataclass(frozen=True, slots=True)
class Proxy:
    """CPU proxy of an engine that needs a device.

    Attributes:
        name: What runs, in words that follow "fp16 on".
        open: Opens the proxy.
    """

    name: str
    open: Callable[[], Backend]


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

    def check(self, spec: BuildSpec) -> None:
        """Check that this back end supports a spec.

        Raises:
            UsageError: It does not.
        """

    def sizes_hw(self, spec: BuildSpec, remarks: list[str]) -> SizeRange | None:
        """Size range of the engine; None if it has a fixed size or takes any.

        Args:
            spec: What to build.
            remarks: Receives sentences for the user.
        """

    def extend(self, model: onnx.ModelProto, spec: EngineSpec) -> onnx.ModelProto:
        """Add the steps before and after the network that the engine includes."""

    def facts(self, spec: BuildSpec) -> dict[str, Any]:
        """Compiler, settings and machine, as far as the engine depends on them; part of the cache key."""

    def build(self, spec: BuildSpec, inputs: Inputs, listener: PhaseListener | None, remarks: list[str]) -> EngineFile:
        """Build the file that the back end loads.

        Args:
            spec: What to build.
            inputs: Sources of the engine.
            listener: Receives the progress of the compiler.
            remarks: Receives sentences for the user.

        Raises:
            BackendError: The compiler is unusable here, or fails.
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


def refuse_compiler_options(spec: BuildSpec, backend: str) -> None:
    """Reject compiler options for a back end without a compiler.

    Raises:
        UsageError: The spec has such options.
    """
    if words := spec.settings.words():
        raise UsageError(
            f"{words[0]} is only for TensorRT and TensorRT-RTX, and the back end is {backend}", "leave it out", got=backend
        )
    if spec.sizes_hw is not None:
        raise UsageError(
            f"a size range ({spec.sizes_hw}) is only for TensorRT and TensorRT-RTX, and {backend} takes any size",
            "use --size dynamic",
            got=backend,
        )


def refuse_architectures(spec: BuildSpec, backend: str) -> None:
    """Reject GPU architectures for a back end that does not compile our kernels.

    Raises:
        UsageError: The spec names architectures.
    """
    if spec.architectures is not None:
        raise UsageError(
            f"--arch is only for the back end fused, and the back end is {backend}",
            "leave it out",
            expected="fused",
            got=backend,
        )


def refuse_form(spec: BuildSpec, backend: str, forms: tuple[str, ...]) -> None:
    """Reject a graph form that the back end does not take.

    Raises:
        UsageError: The spec has such a form.
    """
    if spec.form is not None and spec.form not in forms:
        raise UsageError(
            f"{backend} takes the graph form {' or '.join(forms)} in {spec.precision}, and the form is {spec.form}",
            "leave it out",
            expected=forms,
            got=spec.form,
        )
