"""What makes the engines of one back end: the promise that every target keeps, and what it works with."""

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
    """Told how far a compiler is. Phases nest; called from the compiler's threads."""

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """Take note that a phase of so many steps begins."""

    def stepped(self, phase: str, step: int) -> None:
        """Take note that a step is done, counted from 0."""

    def finished(self, phase: str) -> None:
        """Take note that a phase ends."""


@dataclass(frozen=True, slots=True)
class EngineFile:
    """What a back end loads.

    Attributes:
        name: Name of the file.
        engine: Its content, and what the back end has to know about it.
        target: The machines that it runs on.
        tools: Versions of what compiled it.
        compiled: How it was compiled; None where the back end compiles it whenever it is loaded.
    """

    name: str
    engine: Engine
    target: Target = ANY_MACHINE
    tools: Mapping[str, str] = field(default_factory=dict)
    compiled: Compiled | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an engine is made from.

    Attributes:
        state: The 86 parameters.
        weights: The same as a weights file.
        model: ONNX model with these parameters in the form that the back end takes.
        sizes_hw: Range of sizes of the engine; None if it has one size, or takes any.
    """

    state: State
    weights: bytes
    model: bytes
    sizes_hw: SizeRange | None


@dataclass(frozen=True, slots=True)
class Proxy:
    """What runs on the CPU in the place of an engine that needs a device.

    Attributes:
        name: What to call it, to be put behind "fp16 on".
        open: Opens it.
    """

    name: str
    open: Callable[[], Backend]


class Builder(Protocol):
    """Makes the engines of one back end.

    ``backend`` is the name of the back end. ``compiles`` says whether an engine is more than the weights or the model as they
    are: it cannot be derived from them again, and only running it shows that it is sound.
    """

    @property
    def backend(self) -> str:
        """Name of the back end."""

    @property
    def compiles(self) -> bool:
        """Whether an engine is more than the weights or the model as they are."""

    def check(self, spec: BuildSpec) -> None:
        """Make sure that what is asked for fits this back end.

        Raises:
            UsageError: It does not.
        """

    def sizes_hw(self, spec: BuildSpec, remarks: list[str]) -> SizeRange | None:
        """Range of sizes of the engine; None if it has one size, or takes any.

        Args:
            spec: What to build.
            remarks: Takes sentences that the user should see.
        """

    def extend(self, model: onnx.ModelProto, spec: EngineSpec) -> onnx.ModelProto:
        """Add the steps before and after the network that the engine does itself."""

    def facts(self, spec: BuildSpec) -> dict[str, Any]:
        """Describe what makes the engine, with what settings and where, as far as the engine depends on it."""

    def build(self, spec: BuildSpec, inputs: Inputs, listener: PhaseListener | None, remarks: list[str]) -> EngineFile:
        """Make what the back end loads.

        Args:
            spec: What to build.
            inputs: What to make it from.
            listener: Told how far a compiler is.
            remarks: Takes sentences that the user should see.

        Raises:
            BackendError: A compiler cannot be used here, or refuses.
        """

    def proxy(self, engine: Engine, model: bytes, *, threads: int = 0) -> Proxy:
        """What runs on the CPU in the place of an engine.

        Args:
            engine: The engine.
            model: Its ONNX model.
            threads: Threads on the CPU; 0 for the back end's own choice.

        Raises:
            UsageError: The engine runs on the CPU itself.
        """


def refuse_compiler_options(spec: BuildSpec, backend: str) -> None:
    """Make sure that nothing is asked of a compiler where there is none.

    Raises:
        UsageError: It is.
    """
    if words := spec.settings.words():
        raise UsageError(f"{words[0]} is for TensorRT and TensorRT-RTX only, and the back end is {backend}; leave it out")
    if spec.sizes_hw is not None:
        raise UsageError(
            f"a range of sizes ({spec.sizes_hw}) is for TensorRT and TensorRT-RTX only, and {backend} takes any size; use "
            "--size dynamic"
        )


def refuse_architectures(spec: BuildSpec, backend: str) -> None:
    """Make sure that no GPU architectures are named where our kernels are not compiled.

    Raises:
        UsageError: They are.
    """
    if spec.architectures is not None:
        raise UsageError(f"--arch is for the back end fused only, and the back end is {backend}; leave it out")


def refuse_form(spec: BuildSpec, backend: str, forms: tuple[str, ...]) -> None:
    """Make sure that the graph has a form that the back end takes.

    Raises:
        UsageError: It has not.
    """
    if spec.form is not None and spec.form not in forms:
        raise UsageError(
            f"{backend} does not take the graph form {spec.form} in {spec.precision}, but {' or '.join(forms)}; leave it out"
        )
