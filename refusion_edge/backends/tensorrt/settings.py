"""How a plan is to be compiled, and the vendor's own command that compiles the same."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refusion_edge.backends.tensorrt.product import TENSORRT_RTX, Flavour
from refusion_edge.errors import UsageError
from refusion_edge.network.graph import INPUT_A, INPUT_B, PIXELS
from refusion_edge.sizes import SizeRange

LevelsRange = Literal["stretch", "fixed"]

MAX_LEVEL = 5
_MAX_WORKSPACE_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What may be asked of the compiler; None or empty leaves a choice to it.

    Attributes:
        workspace_mib: Most scratch memory that one kernel may use, in MiB.
        level: Builder optimisation level, 0 (quick build) to 5 (fastest engine).
        version_compatible: Whether newer releases shall be able to load the plan; costs size and speed.
        compute_capabilities: Kinds of device to build for, such as ``8.6``; TensorRT-RTX only.
        timing_cache: File with timings of kernels, read and written; None for the one in the cache folder.
        pixels: Whether the engine shall take 8-bit sources besides planes.
        levels: Range of the 8-bit levels that the engine gives besides the fused plane; None for none.
        plugins: Whether our own kernels shall be part of the plan, as plugins; TensorRT only.
    """

    workspace_mib: int | None = None
    level: int | None = None
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    pixels: bool = False
    levels: LevelsRange | None = None
    plugins: bool = False

    def __post_init__(self) -> None:
        if self.level is not None and not 0 <= self.level <= MAX_LEVEL:
            raise UsageError(f"expected an optimisation level from 0 to {MAX_LEVEL}, got {self.level}; choose another.")
        if self.workspace_mib is not None and not 1 <= self.workspace_mib <= _MAX_WORKSPACE_MIB:
            raise UsageError(
                f"expected a workspace of 1 to {_MAX_WORKSPACE_MIB} MiB, got {self.workspace_mib}; choose another."
            )
        for text in self.compute_capabilities:
            major, _, minor = text.partition(".")
            if not (text.isascii() and major.isdecimal() and minor.isdecimal() and len(text) <= len("99.9")):
                raise UsageError(
                    f"expected compute capabilities such as 8.6,8.9, got '{text[:20]}'; see the device's data sheet."
                )

    def check(self, flavour: Flavour) -> None:
        """Make sure that a flavour can do what is asked.

        Raises:
            UsageError: It cannot.
        """
        if self.compute_capabilities and flavour is not TENSORRT_RTX:
            raise UsageError(
                f"expected --compute-capability only for tensorrt-rtx, got it for {flavour.name}, which builds for the device "
                "of the machine it runs on; leave it out."
            )
        if self.plugins and flavour is TENSORRT_RTX:
            raise UsageError(
                f"expected --plugins only for tensorrt, got it for {flavour.name}, which takes none that are compiled ahead of "
                "time; leave it out."
            )

    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs of the engine."""
        return (INPUT_A, INPUT_B, *(PIXELS.values() if self.pixels else ()))

    def options(self) -> dict[str, str]:
        """What was asked for, as options of ``build`` without their dashes; empty text for an option without a value."""
        options = {}
        if self.workspace_mib is not None:
            options["workspace"] = str(self.workspace_mib)
        if self.level is not None:
            options["opt-level"] = str(self.level)
        if self.version_compatible:
            options["version-compatible"] = ""
        if self.compute_capabilities:
            options["compute-capability"] = ",".join(self.compute_capabilities)
        if self.pixels:
            options["pixels"] = ""
        if self.levels is not None:
            options["levels"] = self.levels
        if self.plugins:
            options["plugins"] = ""
        return options


NO_SETTINGS = PlanSettings()


def tool_command(
    flavour: Flavour, settings: PlanSettings, sizes_hw: SizeRange | None, model: str, plan: str, *, says_typed: bool
) -> str:
    """Write the vendor's command that compiles the same plan from the same ONNX model; none compiles our plugins.

    Args:
        flavour: Which product.
        settings: How it was compiled.
        sizes_hw: Range of sizes, or None if the model has a fixed size.
        model: ONNX file.
        plan: Plan file to write.
        says_typed: Whether strong typing has to be asked for (TensorRT 10); it goes without saying in 11 and in RTX.
    """
    if settings.plugins:
        return ""
    words = [flavour.tool, f"--onnx={model}", f"--saveEngine={plan}", "--skipInference"]
    if says_typed and flavour is not TENSORRT_RTX:
        words.append("--stronglyTyped")
    if sizes_hw is not None:
        for which, (height, width) in zip(
            ("min", "opt", "max"), (sizes_hw.least_hw, sizes_hw.typical_hw, sizes_hw.largest_hw), strict=True
        ):
            words.append(f"--{which}Shapes=" + ",".join(f"{name}:1x1x{height}x{width}" for name in settings.inputs()))
    if settings.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{settings.workspace_mib}")
    if settings.level is not None:
        words.append(f"--builderOptimizationLevel={settings.level}")
    if settings.version_compatible:
        words.append("--versionCompatible")
    if settings.compute_capabilities:
        words.append("--computeCapabilities=" + ",".join(text.replace(".", "") for text in settings.compute_capabilities))
    return shlex.join(words)
