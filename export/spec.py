"""What to build: the wishes of a user, and whether they fit together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusion_edge.backends.registry import AUTO, BACKENDS, status
from refusion_edge.backends.tensorrt.product import FLAVOURS, lacking, least_capability
from refusion_edge.backends.tensorrt.settings import NO_SETTINGS, PlanSettings
from refusion_edge.errors import UsageError
from refusion_edge.images.pairs import ImagePair
from refusion_edge.network.layouts import Precision
from refusion_edge.network.quantization import CalibrationTable
from refusion_edge.sizes import SizeRange

_TENSORRT_FORMS = ("tensorrt-folded", "tensorrt-literal")


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """What to build.

    Attributes:
        task: Name of the task.
        precision: Precision of the engine.
        backend: Back end, or ``auto``.
        size_hw: Fixed height and width, or None for any size.
        weights: Weights file, or None for the weights of the package.
        output: Folder of the bundle, or None for a name made from the rest.
        use_cache: Whether an engine that was built before from the same things may be used again.
        sizes_hw: Range of sizes for a compiled engine; None for the fixed size, or for a range of our choice.
        settings: How a plan is to be compiled; for TensorRT and TensorRT-RTX only.
        form: Graph form, or None for the back end's own.
        calibration: Ranges for int8, from ``refusion_edge.calibration.int8``; None for other precisions.
        judges: Pairs that an int8 engine is judged on besides the sample pairs; they were not calibrated with.
        architectures: GPU architectures that a program for the back end ``fused`` is compiled for, 87 for sm_87; None
            for that of this machine. For no other back end.
    """

    task: str
    precision: Precision = "fp16"
    backend: str = AUTO
    size_hw: tuple[int, int] | None = None
    weights: Path | None = None
    output: Path | None = None
    use_cache: bool = True
    sizes_hw: SizeRange | None = None
    settings: PlanSettings = NO_SETTINGS
    form: str | None = None
    calibration: CalibrationTable | None = None
    judges: tuple[ImagePair, ...] = ()
    architectures: tuple[int, ...] | None = None


def check_spec(spec: BuildSpec, backend: str) -> None:
    """Make sure that what is asked for fits together, and the back end that was chosen.

    Raises:
        UsageError: It does not.
    """
    if (spec.calibration is not None) != (spec.precision == "int8"):
        raise UsageError(
            "expected calibration data for an int8 engine and for no other, got "
            f"{'none' if spec.calibration is None else 'some'} for {spec.precision}; "
            f"{'add --calib-data DIR' if spec.calibration is None else 'leave --calib-data out'}."
        )
    own = BACKENDS[backend].forms[spec.precision]
    takes = _TENSORRT_FORMS if backend in FLAVOURS and spec.precision != "int8" else (own,)
    if spec.form is not None and spec.form not in takes:
        raise UsageError(
            f"expected a graph form that {backend} takes in {spec.precision} ({', '.join(takes)}), got '{spec.form}'; leave "
            "it out."
        )
    if spec.settings.plugins and (spec.precision != "fp16" or spec.form is not None):
        raise UsageError(
            f"expected --plugins with --precision fp16 and the usual form, got {spec.precision} and "
            f"{spec.form or 'the usual form'}; our kernels compute in half precision, leave --plugins out."
        )
    if backend in FLAVOURS:
        spec.settings.check(FLAVOURS[backend])
        _check_capabilities(spec, backend)
    elif spec.settings != NO_SETTINGS or spec.sizes_hw is not None:
        raise UsageError(
            f"expected settings of a compiler and a range of sizes only for {' and '.join(FLAVOURS)}, got them for {backend}, "
            "which compiles nothing beforehand; leave them out."
        )
    if spec.architectures is not None and backend != "fused":
        raise UsageError(f"expected --arch with the back end fused only, got it with {backend}; leave it out.")
    if spec.architectures is None and backend == "fused" and not status(backend).usable:
        raise UsageError(
            "expected --arch for the back end fused on a machine without a GPU, got none; name the device's, such as "
            "--arch sm_87 for Orin."
        )


def _check_capabilities(spec: BuildSpec, backend: str) -> None:
    for capability in spec.settings.compute_capabilities:
        lacks = lacking(backend, capability)
        if spec.precision in lacks:
            others = [precision for precision in BACKENDS[backend].forms if precision not in lacks]
            remedy = f", or build with --precision {' or '.join(others)}" if others else ""
            raise UsageError(
                f"expected compute capabilities that {backend} computes in {spec.precision} on "
                f"({least_capability(backend, spec.precision)} and newer), got {capability}; leave it out{remedy}."
            )
