"""Compiler settings of a plan, and the equivalent command of the vendor's own tool."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from refusion_edge.backends.tensorrt.product import TENSORRT_RTX, Product
from refusion_edge.errors import UsageError
from refusion_edge.images.color import OUTPUT_RANGES, OutputRange
from refusion_edge.network.graph import INPUT_A, INPUT_B, UINT8_INPUTS
from refusion_edge.sizes import SizeRange
from refusion_edge.text import printable

MAX_LEVEL = 5
_MAX_WORKSPACE_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """Settings of the compiler; None or empty leaves a choice to it.

    Attributes:
        workspace_mib: Maximum scratch memory of one kernel, in MiB.
        optimization_level: Builder optimization level, 0 (quick build) to 5 (fastest engine).
        version_compatible: Whether newer releases can load the plan, at the cost of size and speed.
        compute_capabilities: Compute capabilities to build for, such as ``8.6``; TensorRT-RTX only.
        timing_cache: File with kernel timings, read and written; None for the one in the cache folder.
        uint8_input: Whether the engine also accepts uint8 sources.
        uint8_output: Range of an additional uint8 output, ``stretch`` or ``fixed``; None for none.
        plugins: Whether our own kernels are part of the plan, as plugins; TensorRT only.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    uint8_input: bool = False
    uint8_output: OutputRange | None = None
    plugins: bool = False

    def __post_init__(self) -> None:
        level = self.optimization_level
        if level is not None and not 0 <= level <= MAX_LEVEL:
            raise UsageError(
                f"the builder optimization level {level} is out of range",
                f"choose one from 0 to {MAX_LEVEL}",
                expected=(0, MAX_LEVEL),
                got=level,
            )
        if self.uint8_output not in (None, *OUTPUT_RANGES):
            raise UsageError(
                f"unknown output range '{self.uint8_output}'",
                f"choose {' or '.join(OUTPUT_RANGES)}",
                expected=OUTPUT_RANGES,
                got=self.uint8_output,
            )
        if self.workspace_mib is not None and not 1 <= self.workspace_mib <= _MAX_WORKSPACE_MIB:
            raise UsageError(
                f"a workspace of {self.workspace_mib} MiB is out of range",
                f"choose one from 1 to {_MAX_WORKSPACE_MIB} MiB",
                expected=(1, _MAX_WORKSPACE_MIB),
                got=self.workspace_mib,
            )
        for text in self.compute_capabilities:
            major, _, minor = text.partition(".")
            if not (text.isascii() and major.isdecimal() and minor.isdecimal() and len(text) <= len("99.9")):
                raise UsageError(
                    f"'{printable(text, 20)}' is not a compute capability",
                    "name those of the devices, such as 8.6,8.9",
                    got=text,
                )

    def check(self, product: Product) -> None:
        """Check that a product supports these settings.

        Raises:
            UsageError: It does not.
        """
        if self.compute_capabilities and product is not TENSORRT_RTX:
            raise UsageError(
                f"--compute-capability is for tensorrt-rtx only, as {product.name} builds for the device of this machine",
                "leave it out",
                expected=TENSORRT_RTX.name,
                got=product.name,
            )
        if self.plugins and product is TENSORRT_RTX:
            raise UsageError(
                f"--plugins is for tensorrt only, as {product.name} does not support plugins compiled ahead of time",
                "leave it out",
                expected="tensorrt",
                got=product.name,
            )

    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs of the engine."""
        return (INPUT_A, INPUT_B, *(UINT8_INPUTS.values() if self.uint8_input else ()))

    def words(self) -> list[str]:
        """Convert to options of ``build``, without the timing cache, which affects only the build time."""
        options: dict[str, object] = {
            "--workspace": self.workspace_mib,
            "--opt-level": self.optimization_level,
            "--compute-capability": ",".join(self.compute_capabilities) or None,
            "--uint8-output": self.uint8_output,
        }
        switches = {
            "--version-compatible": self.version_compatible,
            "--uint8-input": self.uint8_input,
            "--plugins": self.plugins,
        }
        words = [text for name, value in options.items() if value is not None for text in (name, str(value))]
        return words + [name for name, asked in switches.items() if asked]

    def to_fields(self) -> dict[str, Any]:
        """Settings that differ from the defaults, by name, without the timing cache."""
        asked = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "timing_cache" and getattr(self, field.name) != field.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}


NO_SETTINGS = PlanSettings()


def tool_command(
    product: Product, settings: PlanSettings, sizes_hw: SizeRange | None, model: str, plan: str, *, says_typed: bool
) -> str:
    """Write the vendor's command that compiles the same plan from the same ONNX model.

    Args:
        product: The product.
        settings: Settings of the plan.
        sizes_hw: Range of sizes, or None if the model has a fixed size.
        model: ONNX file.
        plan: Plan file to write.
        says_typed: Whether strong typing has to be requested (TensorRT 10); it is the default in 11 and in RTX.

    Returns:
        The command; empty with plugins, which the vendor's tool cannot compile.
    """
    if settings.plugins:
        return ""
    words = [product.tool, f"--onnx={model}", f"--saveEngine={plan}", "--skipInference", "--noTF32"]
    if says_typed and product is not TENSORRT_RTX:
        words.append("--stronglyTyped")
    if sizes_hw is not None:
        for which, (height, width) in zip(
            ("min", "opt", "max"), (sizes_hw.min_hw, sizes_hw.opt_hw, sizes_hw.max_hw), strict=True
        ):
            words.append(f"--{which}Shapes=" + ",".join(f"{name}:1x1x{height}x{width}" for name in settings.inputs()))
    if settings.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{settings.workspace_mib}")
    if settings.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={settings.optimization_level}")
    if settings.version_compatible:
        words.append("--versionCompatible")
    if settings.compute_capabilities:
        words.append("--computeCapabilities=" + ",".join(text.replace(".", "") for text in settings.compute_capabilities))
    return shlex.join(words)
